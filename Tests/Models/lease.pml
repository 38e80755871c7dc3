/* The lease protocol of ai.worker_claim(), ai.worker_settle(), ai.worker_heartbeat() and the rescue in ai.worker_maintain(), for
   spin: a generation ends, and ends once; every attempt is on the books, and is there once.

   A worker may be frozen at any point (the others go on without it), be declared dead while it is not, die, or send a result twice
   because the answer to the first was lost. The fence is the worker's registration and the number of the attempt.

   Each of these, defined, takes one thing away, and spin must then find a second end or a wrong book:
     NO_FENCE      a result is taken of whoever brings it
     NO_ATTEMPT    the fence is the worker alone
     NO_RESCUE     nobody looks after the generations of the dead */

#define WORKERS  2
#define ATTEMPTS 3        /* ai.settings.max_attempts */
#define NOBODY   255

mtype = { queued, leased, ended };
mtype status = queued;
byte attempt;             /* number of the last attempt, from 1 */
byte lessee = NOBODY;     /* registration that holds the lease */
byte registrations;       /* given out so far */
byte ends;
byte booked[4];           /* rows of ai.llm_calls, by attempt */
byte deaths;
byte losses;
byte freezes;
bool cancel_asked;

inline finish() {
  status = ended;
  lessee = NOBODY;
  ends++;
  assert(ends == 1)
}

inline book(a) {
  booked[a]++;
  assert(booked[a] == 1)
}

/* What follows an attempt that brought no answer. */
inline go_on_or_fail() {
  if
  :: cancel_asked || attempt == ATTEMPTS -> finish()
  :: else -> status = queued; lessee = NOBODY
  fi
}

inline settle(a, success) {
  atomic {
    if
#ifdef NO_FENCE
    :: status != ended || true ->
#else
#ifdef NO_ATTEMPT
    :: status == leased && lessee == me ->
#else
    :: status == leased && lessee == me && attempt == a ->
#endif
#endif
       book(a);
       if
       :: success -> finish()
       :: else -> go_on_or_fail()
       fi
    :: else    /* stale: changes nothing */
    fi
  }
}

proctype Worker() {
  byte me;
  byte mine;
  bool success;
register:
  atomic { registrations < 6; me = registrations; registrations++ }
claim:
  if
  :: status == ended -> goto stop
  :: atomic { status == queued -> status = leased; attempt++; lessee = me; mine = attempt }
  fi;
  /* The call. Anything may happen to this worker here, for as long as it likes. */
  if
  :: atomic { deaths == 0 -> deaths++ }; goto stop
  :: success = true
  :: success = false
  fi;
  settle(mine, success);
  if
  :: atomic { losses == 0 -> losses++ };      /* the answer was lost, */
     if
     :: settle(mine, success)                 /* so the same is said again, */
     :: atomic { status == queued -> status = leased; attempt++; lessee = me };   /* perhaps after a claim whose answer was lost, too */
        settle(mine, success);
        settle(attempt, true)
     fi
  :: true
  fi;
  if
  :: goto claim
  :: goto register                            /* its heartbeat said that it is dead */
  fi;
stop:
  skip
}

/* Another worker's maintenance: whose heartbeat was not seen is declared dead, rightly or not. */
proctype Rescue() {
#ifndef NO_RESCUE
end:
  do
  :: atomic {
       status == leased && (freezes < 2 || deaths > 0) ->
       freezes++;
       book(attempt);                          /* abandoned */
       go_on_or_fail()
     }
  :: status == ended -> break
  od
#else
  skip
#endif
}

proctype App() {
  if
  :: true
  :: atomic {
       if
       :: status == queued -> finish()
       :: status == leased -> cancel_asked = true
       :: status == ended
       fi
     }
  fi
}

init {
  byte i;
  atomic {
    run Worker();
    run Worker();
    run Rescue();
    run App()
  }
  timeout -> assert(status == ended && ends == 1);
  for (i : 1 .. ATTEMPTS) {
    assert(booked[i] == (i <= attempt -> 1 : 0))
  }
}
