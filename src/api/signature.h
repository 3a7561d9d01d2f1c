/*
 * signature.h: E2B's signed file URLs, which name no sandbox.
 *
 * signature = "v1_" + unpadded base64 of SHA-256("<path>:<read|write>:<user>:<token>[:<expiration>]")
 */
#ifndef DORMOUSE_API_SIGNATURE_H
#define DORMOUSE_API_SIGNATURE_H

#include <stdbool.h>

#include "api/uri.h"

/*
 * Whether the query's "signature" was made with this access token for a request of this method. Expiration is not
 * judged: the agent does that.
 */
bool signature_fits(const struct uri_query *query, const char *method, const char *access_token);

#endif
