#include "api/api.h"

const struct api_route e2b_template_routes[] = {
    {0},
};
