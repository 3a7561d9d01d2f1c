/*
 * native_build.h: POST /dormouse/v1/templates: a template build whose progress is streamed.
 *
 * The reply is newline-delimited JSON: {"progress":"…"} for each line, and at last {"template":{…}} or
 * {"error":{…}}. A client that hangs up cancels the build at its next line of progress.
 */
#ifndef DORMOUSE_API_NATIVE_BUILD_H
#define DORMOUSE_API_NATIVE_BUILD_H

#include "api/api.h"

int native_build_template(struct api_call *call, struct error *err);

#endif
