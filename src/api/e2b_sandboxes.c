#include "api/api.h"

const struct api_route e2b_sandbox_routes[] = {
    {0},
};
