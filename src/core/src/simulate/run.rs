//! A course of events: requests come, are placed or turned away or wait, and end.

use std::collections::BTreeMap;

use super::demand::Request;
use super::inventory::Catalogue;
use super::outcome::{Outcome, Wait};
use super::policy::{Policy, Step};

/// What becomes of a request that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It goes away.
    Loss,
    /// It waits. Whenever something ends, all that wait are tried, in the order in which they came.
    Queue,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Course {
    /// Loss or queue.
    pub mode: Mode,
    /// How many requests come before it is counted: a cluster that fills up turns nobody away. In queue mode all are.
    pub warm_up: usize,
}

/// A moment in seconds, as an order.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Moment(f64);

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct Run<'a> {
    policy: &'a mut dyn Policy,
    requests: &'a [Request],
    course: Course,
    outcome: Outcome,
    /// What ends when, and of the same moment in the order in which it was placed.
    ends: BTreeMap<(Moment, u64), u32>,
    placed: u64,
    waiting: Vec<u32>,
    observe: &'a mut dyn FnMut(f64, &Step),
    steps: Vec<Step>,
}

/// Lets requests, in the order in which they come, meet a policy. `observe` is told of every placement and move, with its time.
pub fn run(
    policy: &mut dyn Policy,
    catalogue: &Catalogue,
    requests: &[Request],
    course: Course,
    observe: &mut dyn FnMut(f64, &Step),
) -> Outcome {
    let outcome = Outcome::new(catalogue, course.mode);
    let mut run = Run {
        policy,
        requests,
        course,
        outcome,
        ends: BTreeMap::new(),
        placed: 0,
        waiting: Vec::new(),
        observe,
        steps: Vec::new(),
    };
    for (index, request) in requests.iter().enumerate() {
        run.end_until(request.arrival);
        if index == run.warm_up() {
            run.outcome.begin(request.arrival, run.policy.used());
        }
        run.arrive(index, catalogue);
    }
    let last = requests.last().map_or(0.0, |request| request.arrival);
    if course.mode == Mode::Queue {
        run.end_until(f64::INFINITY);
    }
    run.outcome.unplaced = u64::try_from(run.waiting.len()).unwrap_or(u64::MAX);
    let end = run.outcome.makespan.max(last);
    run.outcome.finish(end, run.policy.used());
    run.outcome
}

impl Run<'_> {
    fn warm_up(&self) -> usize {
        if self.course.mode == Mode::Queue { 0 } else { self.course.warm_up }
    }

    fn arrive(&mut self, index: usize, catalogue: &Catalogue) {
        let request = &self.requests[index];
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        self.policy.note(request);
        let is_placed = self.place(number, request.arrival);
        if index >= self.warm_up() {
            let fragmented = !is_placed && self.policy.would_fit(request);
            let is_lost = !is_placed && self.course.mode == Mode::Loss;
            self.outcome.note(catalogue, request, !is_lost, is_placed, fragmented);
        }
        if !is_placed && self.course.mode == Mode::Queue {
            self.waiting.push(number);
        }
    }

    fn place(&mut self, number: u32, now: f64) -> bool {
        let request = &self.requests[number as usize];
        self.steps.clear();
        if !self.policy.admit(number, request, now, &mut self.steps) {
            return false;
        }
        self.steps.iter().for_each(|step| (self.observe)(now, step));
        if number as usize >= self.warm_up() {
            self.outcome.moves += self.steps.iter().map(|step| u64::from(step.moved)).sum::<u64>();
        }
        if let Some(duration) = request.duration {
            self.placed += 1;
            self.ends.insert((Moment(now + duration), self.placed), number);
        }
        let profile = request.slices.first().map_or(0, |ask| ask.profile);
        self.outcome.waits.push(Wait { seconds: now - request.arrival, profile });
        self.outcome.level(now, self.policy.used());
        true
    }

    /// Lets all end that does until then.
    fn end_until(&mut self, until: f64) {
        while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0.0 <= until) {
            let now = entry.key().0.0;
            let number = entry.remove();
            self.policy.release(number);
            self.outcome.level(now, self.policy.used());
            if self.course.mode == Mode::Queue {
                self.outcome.makespan = now;
            }
            // What ends at the same moment makes room for the same requests.
            if self.ends.first_key_value().is_none_or(|((next, _), _)| next.0 > now) {
                self.try_waiting(now);
            }
        }
    }

    fn try_waiting(&mut self, now: f64) {
        let mut turned_away: Vec<u32> = Vec::new();
        for number in std::mem::take(&mut self.waiting) {
            let request = &self.requests[number as usize];
            // Another one like it has just found no room.
            let alike = |other: &u32| {
                let other = &self.requests[*other as usize];
                (other.pods, &other.slices) == (request.pods, &request.slices)
            };
            if turned_away.iter().rev().take(64).any(alike) || !self.place(number, now) {
                turned_away.push(number);
            }
        }
        self.waiting = turned_away;
    }
}
