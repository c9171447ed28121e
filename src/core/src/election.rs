//! Who leads: an election by one record that everybody can read, and that is replaced only as it was read.
//!
//! The rules are those of client-go's `tools/leaderelection`. Nobody compares clocks: a record counts as expired once it has
//! not changed, in the sight of whoever judges, for as long as it says itself. Times are durations of one machine's clock,
//! which must go on while the process or the machine is suspended.
//!
//! What differs: every acquisition counts as a transition, also one by the same holder after a restart, so that transitions
//! number the terms; and whoever has lost a term does not stand for election again.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// How long things take, as client-go names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long the others wait, after the last renewal that they have seen, before one of them takes over.
    pub lease_duration: Duration,
    /// How long the leader goes on after its last successful renewal was begun.
    pub renew_deadline: Duration,
    /// How often the leader renews, and how soon what has failed is tried again.
    pub retry_period: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Times with which two could lead at once, or nobody for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTimes {
    /// A leader would go on while another takes over.
    #[error(
        "the lease duration must be longer than the renew deadline, by which the leader has stepped down"
    )]
    Duration,
    /// One failed renewal would end a term.
    #[error("the renew deadline must be longer than the retry period, so that a renewal can be tried again")]
    Deadline,
    /// The record would be written without a pause.
    #[error("the retry period must not be zero")]
    Retry,
}

impl Times {
    /// Fails when the times do not go together.
    pub fn check(&self) -> Result<(), InvalidTimes> {
        if self.lease_duration <= self.renew_deadline {
            return Err(InvalidTimes::Duration);
        }
        if self.renew_deadline <= self.retry_period {
            return Err(InvalidTimes::Deadline);
        }
        if self.retry_period.is_zero() {
            return Err(InvalidTimes::Retry);
        }
        Ok(())
    }
}

/// The record as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty when the last leader has released it.
    pub holder: String,
    /// Terms before this one.
    pub transitions: u32,
    /// How long it is good for, unless it changes.
    pub duration: Duration,
}

/// The record at some version; `None`: there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The version, which grows with every change.
    pub version: u64,
    /// What it says.
    pub record: Option<Record>,
}

/// A time as leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// Terms before this one.
    pub transitions: u32,
    /// Whether everybody before has said that nothing of his is under way any more.
    pub clean: bool,
    /// When the last successful renewal was begun.
    renewed: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before that time, unless the record changes.
    Wait(Duration),
    /// Read the record.
    Read,
    /// Replace the record, if it still is of this version; make it, if that is `None`.
    Write {
        /// The version that was seen.
        expect: Option<u64>,
        /// Terms before the one that it is for.
        transitions: u32,
        /// Whether a new term begins with it.
        acquires: bool,
    },
    /// Stop leading at once.
    StepDown(Loss),
}

/// How a term was lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// No renewal succeeded in time.
    #[error("the lease was not renewed within the renew deadline")]
    Deadline,
    /// Somebody else has it.
    #[error("the lease is held by {0:?}")]
    Taken(String),
}

/// One candidate's part in the election.
#[derive(Clone, Debug)]
pub struct Election {
    me: String,
    times: Times,
    seen: Option<Seen>,
    term: Option<Term>,
    /// Nothing is written before.
    pause: Duration,
}

#[derive(Clone, Debug)]
struct Seen {
    observation: Observation,
    /// When it was first seen so.
    since: Duration,
    /// When the record was last heard of.
    heard: Duration,
    /// Whether a write on it was refused: it is not what there is.
    stale: bool,
    /// The record, or the one that was there before somebody deleted it: who led then may not know yet.
    last: Option<Record>,
}

impl Election {
    /// A candidate that knows nothing yet.
    pub fn new(me: String, times: Times) -> Self {
        Self { me, times, seen: None, term: None, pause: Duration::ZERO }
    }

    /// Takes in the record as it was read, or as a watch tells of it. What is older than what is known says nothing.
    pub fn observe(&mut self, now: Duration, observation: Observation) {
        match &mut self.seen {
            Some(seen) if observation.version < seen.observation.version => {}
            Some(seen) if observation == seen.observation => {
                seen.heard = now;
                seen.stale = false;
            }
            known => {
                let before = known.take().and_then(|seen| seen.last);
                let last = observation.record.clone().or(before);
                *known = Some(Seen { observation, since: now, heard: now, stale: false, last });
            }
        }
    }

    /// Takes in that there is no record, where no version is known with it.
    pub fn observe_none(&mut self, now: Duration) {
        let version = self.seen.as_ref().map_or(0, |seen| seen.observation.version);
        self.observe(now, Observation { version, record: None });
    }

    /// Takes in that a write succeeded that was begun at `begun`, with the record as it is now.
    pub fn written(&mut self, begun: Duration, now: Duration, transitions: u32, observation: Observation) {
        let clean = match &self.term {
            Some(term) => term.clean,
            None => self
                .seen
                .as_ref()
                .is_some_and(|seen| seen.last.as_ref().is_none_or(|record| record.holder.is_empty())),
        };
        self.term = Some(Term { transitions, clean, renewed: begun });
        self.observe(now, observation);
    }

    /// Takes in that the record was not what a write expected.
    pub fn refused(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.stale = true;
        }
    }

    /// Takes in that a call failed: no matter what has become of it, the record is read before the next write.
    pub fn failed(&mut self, now: Duration) {
        self.pause = now + self.times.retry_period;
        self.refused();
    }

    /// The term, if there is one that has not been lost at `now`.
    pub fn term(&self, now: Duration) -> Option<Term> {
        self.term.filter(|_| self.loss(now).is_none())
    }

    /// Until when the term lasts if it is not renewed.
    pub fn held_until(&self) -> Option<Duration> {
        self.term.map(|term| term.renewed + self.times.renew_deadline)
    }

    /// What to do at `now`.
    pub fn next(&self, now: Duration) -> Step {
        if let Some(loss) = self.loss(now) {
            return Step::StepDown(loss);
        }
        let due = match (&self.term, &self.seen) {
            // Nothing is known yet; or the Lease is gone, and is made again before somebody else makes it.
            (None, None) | (Some(_), Some(Seen { observation: Observation { record: None, .. }, .. })) => now,
            (Some(term), _) => term.renewed + self.times.retry_period,
            // Silence can be the watch's, too.
            (None, Some(seen)) => self.vacant_from(seen).min(seen.heard + 2 * self.times.retry_period),
        };
        let due = due.max(self.pause);
        if now < due {
            return Step::Wait(self.held_until().map_or(due, |until| until.min(due)));
        }
        let Some(seen) = self.seen.as_ref().filter(|seen| !seen.stale) else { return Step::Read };
        let record = seen.observation.record.as_ref();
        let expect = record.map(|_| seen.observation.version);
        match &self.term {
            Some(term) => Step::Write { expect, transitions: term.transitions, acquires: false },
            None if now < self.vacant_from(seen) => Step::Read,
            None => {
                let transitions = seen.last.as_ref().map_or(0, |record| record.transitions.saturating_add(1));
                Step::Write { expect, transitions, acquires: true }
            }
        }
    }

    /// The version to release, if the record is ours as far as is known.
    pub fn to_release(&self) -> Option<(u64, u32)> {
        let (term, seen) = (self.term?, self.seen.as_ref()?);
        let record = seen.observation.record.as_ref()?;
        (record.holder == self.me && record.transitions == term.transitions)
            .then_some((seen.observation.version, term.transitions))
    }

    fn loss(&self, now: Duration) -> Option<Loss> {
        let term = self.term?;
        if let Some(record) = self.seen.as_ref().and_then(|seen| seen.observation.record.as_ref())
            && (record.holder != self.me || record.transitions != term.transitions)
        {
            return Some(Loss::Taken(record.holder.clone()));
        }
        (now >= term.renewed + self.times.renew_deadline).then_some(Loss::Deadline)
    }

    /// From when on the record is anybody's. One that bears our own name is an earlier life's, which is over.
    fn vacant_from(&self, seen: &Seen) -> Duration {
        match &seen.last {
            Some(record) if !record.holder.is_empty() && record.holder != self.me => {
                seen.since + record.duration
            }
            _ => Duration::ZERO,
        }
    }
}
