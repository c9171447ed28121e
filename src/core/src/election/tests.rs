use proptest::prelude::*;

use super::*;

const TIMES: Times = Times {
    lease_duration: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry_period: Duration::from_secs(2),
};

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn record(holder: &str, transitions: u32) -> Record {
    Record { holder: holder.to_owned(), transitions, duration: TIMES.lease_duration }
}

fn seen(version: u64, holder: &str, transitions: u32) -> Observation {
    Observation { version, record: Some(record(holder, transitions)) }
}

/// A candidate `me` that leads since the time 0, in term 4.
fn leader() -> Election {
    let mut election = Election::new("me".to_owned(), TIMES);
    election.observe(s(0), seen(7, "", 3));
    let acquire = Step::Write { expect: Some(7), transitions: 4, acquires: true };
    assert_eq!(election.next(s(0)), acquire);
    election.written(s(0), s(0), 4, seen(8, "me", 4));
    election
}

#[test]
fn a_record_that_is_not_there_is_made_and_one_that_was_released_is_taken_at_once() {
    let mut election = Election::new("me".to_owned(), TIMES);
    assert_eq!(election.next(s(1)), Step::Read);
    election.observe_none(s(1));
    assert_eq!(election.next(s(1)), Step::Write { expect: None, transitions: 0, acquires: true });
    election.written(s(1), s(1), 0, seen(1, "me", 0));
    assert!(election.term(s(1)).is_some_and(|term| term.clean && term.transitions == 0));
    assert!(leader().term(s(1)).is_some_and(|term| term.clean));
}

#[test]
fn a_foreign_record_is_taken_once_it_has_not_changed_for_as_long_as_it_says() {
    let mut election = Election::new("me".to_owned(), TIMES);
    // Seen late, so it counts from then.
    election.observe(s(100), seen(7, "other", 3));
    election.observe(s(108), seen(8, "other", 3));
    for silent in [112, 116, 120] {
        assert_eq!(election.next(s(silent)), Step::Read, "a watch that is silent is asked after");
        election.observe(s(silent), seen(8, "other", 3));
    }
    assert_eq!(election.next(s(122)), Step::Wait(s(123)));
    assert_eq!(election.next(s(123)), Step::Write { expect: Some(8), transitions: 4, acquires: true });
    election.written(s(123), s(123), 4, seen(9, "me", 4));
    assert!(
        election.term(s(123)).is_some_and(|term| !term.clean),
        "nobody has said that nothing is under way"
    );
}

#[test]
fn a_record_of_an_earlier_life_is_taken_at_once_as_a_new_term() {
    let mut election = Election::new("me".to_owned(), TIMES);
    election.observe(s(1), seen(7, "me", 3));
    assert_eq!(election.next(s(1)), Step::Write { expect: Some(7), transitions: 4, acquires: true });
    election.written(s(1), s(1), 4, seen(8, "me", 4));
    assert!(election.term(s(1)).is_some_and(|term| !term.clean));
}

#[test]
fn a_write_that_is_refused_is_followed_by_a_look() {
    let mut election = Election::new("me".to_owned(), TIMES);
    election.observe(s(0), seen(7, "", 3));
    election.refused();
    assert_eq!(election.next(s(0)), Step::Read);
    election.observe(s(0), seen(8, "other", 4));
    assert_eq!(election.next(s(0)), Step::Wait(s(4)));
}

#[test]
fn a_leader_renews_at_every_retry_period_and_steps_down_at_the_deadline() {
    let mut election = leader();
    assert_eq!(election.next(s(1)), Step::Wait(s(2)));
    assert_eq!(election.next(s(2)), Step::Write { expect: Some(8), transitions: 4, acquires: false });
    election.written(s(2), s(3), 4, seen(9, "me", 4));
    assert_eq!(election.held_until(), Some(s(12)), "counted from before the call");
    // From now on every call fails.
    for time in [4, 6, 8, 10] {
        assert!(matches!(election.next(s(time)), Step::Read | Step::Write { .. }));
        election.failed(s(time));
        assert_eq!(election.next(s(time)), Step::Wait(s(time + 2)));
    }
    assert!(election.term(s(11)).is_some());
    assert_eq!(election.term(s(12)), None);
    assert_eq!(election.next(s(12)), Step::StepDown(Loss::Deadline));
    election.observe(s(30), seen(11, "", 4));
    assert_eq!(election.next(s(30)), Step::StepDown(Loss::Taken(String::new())), "it does not stand again");
}

#[test]
fn a_leader_that_slept_too_long_or_was_replaced_steps_down() {
    assert_eq!(leader().next(s(60)), Step::StepDown(Loss::Deadline));
    let mut replaced = leader();
    replaced.observe(s(1), seen(9, "other", 5));
    assert_eq!(replaced.next(s(1)), Step::StepDown(Loss::Taken("other".to_owned())));
    assert_eq!(replaced.term(s(1)), None);
    assert_eq!(replaced.to_release(), None);
    let mut twin = leader();
    twin.observe(s(1), seen(9, "me", 5));
    assert_eq!(twin.next(s(1)), Step::StepDown(Loss::Taken("me".to_owned())), "somebody of the same name");
}

#[test]
fn a_renewal_whose_answer_was_lost_does_not_end_the_term() {
    let mut election = leader();
    election.failed(s(2));
    assert_eq!(election.next(s(4)), Step::Read);
    election.observe(s(4), seen(9, "me", 4));
    assert_eq!(election.next(s(4)), Step::Write { expect: Some(9), transitions: 4, acquires: false });
}

#[test]
fn a_record_that_somebody_deletes_is_made_again_by_the_leader_and_left_alone_by_the_others() {
    let mut leading = leader();
    leading.observe(s(1), Observation { version: 9, record: None });
    assert_eq!(leading.next(s(1)), Step::Write { expect: None, transitions: 4, acquires: false });
    let mut waiting = Election::new("me".to_owned(), TIMES);
    waiting.observe(s(0), seen(8, "other", 4));
    waiting.observe(s(1), Observation { version: 9, record: None });
    assert_eq!(waiting.next(s(2)), Step::Wait(s(5)));
    assert_eq!(waiting.next(s(16)), Step::Write { expect: None, transitions: 5, acquires: true });
}

#[test]
fn what_is_older_than_what_is_known_says_nothing() {
    let mut election = leader();
    election.observe(s(1), seen(7, "other", 3));
    assert!(election.term(s(1)).is_some());
}

#[test]
fn times_that_do_not_go_together_are_refused() {
    assert_eq!(Times::default().check(), Ok(()));
    let equal = Times { renew_deadline: s(15), ..TIMES };
    assert_eq!(equal.check(), Err(InvalidTimes::Duration));
    assert_eq!(Times { retry_period: s(10), ..TIMES }.check(), Err(InvalidTimes::Deadline));
    assert_eq!(Times { retry_period: s(0), ..TIMES }.check(), Err(InvalidTimes::Retry));
}

/// A call under way: when it was begun, when the server carries it out, when the answer comes.
struct Call {
    step: Step,
    begun: u64,
    at_server: u64,
    answer_at: u64,
    answer: Option<Result<Observation, ()>>,
    lost: bool,
}

/// A process with a clock of its own, which can be frozen and killed.
struct Candidate {
    name: String,
    election: Election,
    offset: u64,
    awake_at: u64,
    alive: bool,
    call: Option<Call>,
}

/// Milliseconds in a tick of the simulation.
const TICK: u64 = 250;

/// What the server has, and chance.
struct Server {
    stored: Observation,
    random: u64,
}

impl Server {
    /// `SplitMix64`.
    fn draw(&mut self) -> u8 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 56) as u8
    }

    fn carry_out(&mut self, name: &str, step: &Step) -> Result<Observation, ()> {
        if let Step::Write { expect, transitions, .. } = step {
            let known = self.stored.record.as_ref().map(|_| self.stored.version);
            if *expect != known {
                return Err(());
            }
            let record = Some(record(name, *transitions));
            self.stored = Observation { version: self.stored.version + 1, record };
        }
        Ok(self.stored.clone())
    }
}

impl Candidate {
    fn new(name: String, offset: u64) -> Self {
        let election = Election::new(name.clone(), TIMES);
        Self { name, election, offset, awake_at: 0, alive: true, call: None }
    }

    fn clock(&self, now: u64) -> Duration {
        Duration::from_millis(now + self.offset)
    }

    /// A frozen process leads as long as it would go on writing if it woke up now.
    fn leads(&self, now: u64) -> Option<Term> {
        self.election.term(self.clock(now)).filter(|_| self.alive)
    }

    fn tick(&mut self, now: u64, calm: bool, server: &mut Server) {
        // The server carries out what it was sent, whatever becomes of the sender.
        if let Some(call) = self.call.as_mut().filter(|call| call.answer.is_none() && call.at_server <= now) {
            call.answer = Some(server.carry_out(&self.name, &call.step));
        }
        if !self.alive || now < self.awake_at {
            return;
        }
        let clock = self.clock(now);
        if let Some(call) = self.call.take_if(|call| call.answer_at <= now) {
            let begun = self.clock(call.begun);
            match (call.step, call.answer) {
                (_, Some(_)) if call.lost => self.election.failed(clock),
                (Step::Write { transitions, .. }, Some(Ok(seen))) => {
                    self.election.written(begun, clock, transitions, seen);
                }
                (Step::Read, Some(Ok(seen))) if seen.record.is_none() => self.election.observe_none(clock),
                (_, Some(Ok(seen))) => self.election.observe(clock, seen),
                (_, Some(Err(()))) => self.election.refused(),
                (_, None) => self.election.failed(clock),
            }
        }
        if self.call.is_some() {
            return;
        }
        // The watch may or may not have something to tell.
        if server.draw() < 100 && server.stored.record.is_some() {
            self.election.observe(clock, server.stored.clone());
        }
        let step = self.election.next(clock);
        if matches!(step, Step::Read | Step::Write { .. }) {
            let (slow, slower) = (u64::from(server.draw() % 8) * TICK, u64::from(server.draw() % 8) * TICK);
            let lost = server.draw() < 20 && !calm;
            let at_server = now + slow;
            self.call =
                Some(Call { step, begun: now, at_server, answer_at: at_server + slower, answer: None, lost });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// However calls are delayed and lost, processes are frozen, killed and started again: never do two lead, terms have
    /// numbers of their own, and once all is calm somebody leads soon.
    #[test]
    fn no_two_ever_lead_and_somebody_does_in_the_end(random in any::<u64>()) {
        let mut server = Server { stored: Observation { version: 1, record: None }, random };
        let mut candidates: Vec<Candidate> =
            (0..3).map(|n| Candidate::new(format!("c{n}"), n * 1_000_003)).collect();
        let mut terms: Vec<(u32, String, u32)> = Vec::new();
        let mut lives = 0;
        let (stormy, end) = (400_000 / TICK, 460_000 / TICK);
        for tick in 0..end {
            let now = tick * TICK;
            for candidate in &mut candidates {
                if tick < stormy {
                    match server.draw() {
                        0 => candidate.awake_at = now + u64::from(server.draw()) * TICK,
                        1 => candidate.alive = false,
                        _ => {}
                    }
                } else {
                    candidate.awake_at = candidate.awake_at.min(now);
                }
                let over = !candidate.alive
                    || matches!(candidate.election.next(candidate.clock(now)), Step::StepDown(_));
                // Its name stays, as a container's does that is started again in its pod. What it had sent is on its way.
                let idle = candidate.call.as_ref().is_none_or(|call| call.answer.is_some());
                if over && now >= candidate.awake_at && idle {
                    lives += 1;
                    *candidate = Candidate::new(candidate.name.clone(), candidate.offset);
                }
                candidate.tick(now, tick >= stormy, &mut server);
            }
            let leading: Vec<&Candidate> = candidates.iter().filter(|c| c.leads(now).is_some()).collect();
            prop_assert!(leading.len() <= 1, "{} lead at {now} ms", leading.len());
            if let Some(leader) = leading.first() {
                let transitions = leader.leads(now).map_or(0, |term| term.transitions);
                let name = (transitions, leader.name.clone(), lives);
                if terms.last().is_none_or(|last| last.0 != transitions) {
                    prop_assert!(terms.last().is_none_or(|last| last.0 < transitions), "{terms:?} then {name:?}");
                    terms.push(name);
                }
            }
        }
        let now = end * TICK;
        prop_assert!(candidates.iter().any(|c| c.leads(now).is_some()), "nobody leads a minute after all faults");
    }
}
