/* The wake-up handshake of ai.wake_workers(), ai.worker_sleep() and ai.worker_wake(), for spin: no row is left behind while
   everybody sleeps. The safety poll is not modelled; nothing here may need it.

   What a commit does comes in PostgreSQL's own order: the rows become visible, then the locks go, then listeners are told.
   A lock that is tried, and not waited for, is refused also while somebody waits for it exclusively.

   Each of these, defined, takes one thing away, and spin must then find a lost wake-up:
     NO_SECOND_LOOK         sleeps as soon as the lock is granted
     UNLOCKED_BEFORE_SEEN   the lock goes before the rows are visible
     TOLD_BEFORE_SEEN       listeners are told before the rows are visible
     DROP_UNNOTICED         a sleeper does not notice that its connection, and the lock with it, are gone (seen with WORKERS=1) */

#define INSERTS 3
#ifndef WORKERS
#define WORKERS 2
#endif
#define NOBODY  255

byte queued;              /* rows that are visible and not claimed */
byte claimed;
byte shared;              /* inserting transactions that hold the lock, shared */
byte holder = NOBODY;     /* the worker's session that holds it alone */
byte waiting;             /* workers that wait to hold it alone */
bool told[WORKERS];       /* a notification that has arrived and was not read */
byte rolled_back;
byte drops;
byte gaps;                /* how often who waits asked again */

inline tell() {
  told[0] = true;
#if WORKERS > 1
  told[1] = true;
#endif
}

proctype Insert() {
  bool notifies;
  atomic {
    if
    :: holder == NOBODY && waiting == 0 -> shared++
    :: else -> notifies = true
    fi
  }
  if
  :: rolled_back == 0 -> atomic { rolled_back++; if :: !notifies -> shared-- :: else fi }
  :: true ->
#ifdef TOLD_BEFORE_SEEN
     if :: notifies -> tell() :: else fi;
#endif
#ifdef UNLOCKED_BEFORE_SEEN
     if :: !notifies -> shared-- :: else fi;
     queued++;
#else
     queued++;
     if :: !notifies -> shared-- :: else fi;
#endif
#ifndef TOLD_BEFORE_SEEN
     if :: notifies -> atomic { tell() } :: else fi;
#endif
  fi
}

proctype Worker(byte me) {
  bool found;
  bool holds;    /* what it believes */
look:
  atomic {
    told[me] = false;   /* a notification that came before this look is answered by it */
    found = queued > 0;
    if :: found -> queued--; claimed++ :: else fi
  }
  if
  :: found && holds ->
     if
     :: goto look
     :: atomic { holds = false; if :: holder == me -> holder = NOBODY :: else fi }; goto look   /* busy: ai.worker_wake() */
     fi
  :: found && !holds -> goto look
  :: !found && !holds ->
     waiting++;
end_waiting:
     if
     :: atomic { holder == NOBODY && shared == 0 -> holder = me; waiting--; holds = true }
#ifdef NO_SECOND_LOOK
        goto end_asleep
#else
        goto look
#endif
     :: atomic { gaps < 1 -> gaps++; waiting-- }; waiting++; goto end_waiting   /* the wait is bounded; then it asks again */
     :: atomic { told[me] -> waiting-- }; goto look   /* what came meanwhile is looked for at once */
     fi
  :: !found && holds -> goto end_asleep
  fi;
end_asleep:
  if
  :: told[me] -> goto look
#ifndef DROP_UNNOTICED
  :: holder != me -> holds = false; goto look
#endif
  fi
}

/* The connection of a sleeper is cut, once; its lock goes with it. */
proctype Network() {
  if
  :: atomic { holder != NOBODY -> holder = NOBODY; drops++ }
  :: true
  fi
}

init {
  byte i;
  atomic {
    for (i : 1 .. INSERTS) { run Insert() }
    run Worker(0);
#if WORKERS > 1
    run Worker(1);
#endif
    run Network()
  }
  /* Nobody can do anything any more: then nothing is left to do. */
  timeout -> assert(queued == 0 && claimed + rolled_back == INSERTS)
}
