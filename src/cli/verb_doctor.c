#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"
#include "host/doctor.h"

static const struct verb_usage usage = {
    .verb = "doctor",
    .arguments = "[OPTIONS]",
    .summary = "Says what this host has and lacks for running sandboxes, with the remedy for each.",
    .details = "Works without a daemon. The exit status is 1 if something that every sandbox needs is missing.\n",
};

static json_t *report_json(const struct doctor_report *report)
{
    json_t *list = json_array();
    for (size_t i = 0; i < report->count; i++) {
        const struct doctor_check *check = &report->checks[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s?}", "name", check->name, "status",
                                              doctor_status_name(check->status), "detail", check->detail, "remedy",
                                              check->remedy));
    }
    return list;
}

static void print_report(const struct doctor_report *report)
{
    for (size_t i = 0; i < report->count; i++) {
        const struct doctor_check *check = &report->checks[i];
        printf("%-5s %-14s %s%s%s\n", doctor_status_name(check->status), check->name, check->detail,
               check->remedy != NULL ? "; remedy: " : "", check->remedy != NULL ? check->remedy : "");
    }
}

static int refuse_if_failed(const struct doctor_report *report, struct error *err)
{
    CLEANUP_STRBUF struct strbuf failed = STRBUF_INIT;
    for (size_t i = 0; i < report->count; i++)
        if (report->checks[i].status == DOCTOR_FAIL)
            strbuf_printf(&failed, "%s%s", failed.length > 0 ? ", " : "", report->checks[i].name);
    if (failed.length == 0)
        return EXIT_SUCCESS;
    error_set(err, ENOTSUP, "sandboxes can't run on this host: %s", strbuf_text(&failed));
    error_hint(err, "the report names the remedies");
    return -ENOTSUP;
}

int verb_doctor(struct cli *cli, int argc, char **argv, struct error *err)
{
    const char *data_directory = "/var/lib/dormouse";
    const struct option_spec specs[] = {
        {0, "data", "DIR", "the daemon's --data (default: /var/lib/dormouse)", option_text, &data_directory},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_DOCTOR_REPORT struct doctor_report report = {0};
    r = doctor_examine(data_directory, &report, err);
    if (r < 0)
        return r;
    CLEANUP_JSON json_t *list = cli->json ? report_json(&report) : NULL;
    if (cli->json)
        format_json(list);
    else
        print_report(&report);
    return refuse_if_failed(&report, err);
}
