/*
 * priority.h: how threads share the processors. A guest stands still while its request is answered, so those who
 * answer come before those who work ahead, and run at once when they wake up.
 */
#ifndef DORMOUSE_IMAGED_PRIORITY_H
#define DORMOUSE_IMAGED_PRIORITY_H

/* Each sets the calling thread. Without the right to, everything works as well, only later. */
void priority_answering(void);
void priority_ahead(void);

#endif
