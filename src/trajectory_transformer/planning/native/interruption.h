/* Signals: Python's handlers run only where Python looks for them, which a long call does now and then. */
#pragma once

#include <omp.h>

#include "decoder.h"

/* Python's own, which its extension modules find in the process too. */
void *PyEval_SaveThread(void);
void PyEval_RestoreThread(void *state);
int PyErr_CheckSignals(void);

#define SIGNAL_SECONDS 0.1 /* that may pass before a signal is seen */

static _Thread_local void *python; /* the state of the thread that Python called, while others may run Python; else NULL */
static _Thread_local double due;   /* when that thread next looks for signals */

/* Let other threads run Python, as until end_call. */
static void begin_call(Decoder *d) {
    *d->stop = 0, due = omp_get_wtime() + SIGNAL_SECONDS, python = PyEval_SaveThread();
}

/* Python then raises what the handler of a signal has raised. Of a call that ended in its middle no row is left. */
static int end_call(Decoder *d, int status) {
    PyEval_RestoreThread(python), python = NULL;
    if (status == NO_MEMORY || status == INTERRUPTED) d->newest.num_rows = 0;
    return status;
}

/* Whether the call is to end, as a handler has raised. Any thread of the team may ask; the one that Python called looks. */
static int interrupted(const Decoder *d) {
    if (python && !*d->stop && omp_get_wtime() > due) {
        PyEval_RestoreThread(python);
        *d->stop = PyErr_CheckSignals() != 0; /* does nothing but in Python's main thread */
        python = PyEval_SaveThread(), due = omp_get_wtime() + SIGNAL_SECONDS;
    }
    return *d->stop;
}
