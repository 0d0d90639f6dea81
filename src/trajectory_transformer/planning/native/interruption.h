/* Interruption by signals: Python's signal handlers run only when Python checks for signals, so long calls check
 * regularly. */
#pragma once

#include <omp.h>

#include "decoder.h"

/* Functions of Python's C API, found in the running process. */
void *PyEval_SaveThread(void);
void PyEval_RestoreThread(void *state);
int PyErr_CheckSignals(void);

#define SIGNAL_SECONDS 0.1 /* between two checks for signals */

static _Thread_local void *python; /* in the thread that Python called: its saved state during a call; else NULL */
static _Thread_local double due;   /* time of that thread's next check */

/* Begin a call: release Python's lock until end_call, so that other threads may run Python. */
static void begin_call(Decoder *d) {
    *d->stop = 0, due = omp_get_wtime() + SIGNAL_SECONDS, python = PyEval_SaveThread();
}

/* End a call; Python then raises the exception of a signal handler, if any. After a failed call there are no rows. */
static int end_call(Decoder *d, int status) {
    PyEval_RestoreThread(python), python = NULL;
    if (status == NO_MEMORY || status == INTERRUPTED) d->newest.num_rows = 0;
    return status;
}

/* Whether the call must end because a signal handler raised an exception. All threads of a team may call this; only the
 * thread that Python called checks for signals. */
static int interrupted(const Decoder *d) {
    if (python && !*d->stop && omp_get_wtime() > due) {
        PyEval_RestoreThread(python);
        *d->stop = PyErr_CheckSignals() != 0; /* has an effect only in Python's main thread */
        python = PyEval_SaveThread(), due = omp_get_wtime() + SIGNAL_SECONDS;
    }
    return *d->stop;
}
