//! Every policy on every seed, on all processors.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use slicegate_core::simulate::demand::{Drawn, Request};
use slicegate_core::simulate::inventory::{Catalogue, Inventory};
use slicegate_core::simulate::outcome::Outcome;
use slicegate_core::simulate::placing::Limits;
use slicegate_core::simulate::policy::Name;
use slicegate_core::simulate::run::{Course, run};

use super::decisions::Decisions;
use super::progress::Progress;

/// What is asked for.
pub enum Demand {
    /// The same for every seed.
    Recorded(Vec<Request>),
    /// Each seed's own.
    Drawn(Drawn),
}

/// What is to be done.
pub struct Work<'a> {
    pub catalogue: &'a Catalogue,
    pub inventory: &'a Inventory,
    pub demand: &'a Demand,
    pub policies: &'a [Name],
    pub limits: Limits,
    pub course: Course,
    pub seeds: Vec<u64>,
    pub with_decisions: bool,
}

/// What came of one policy on one seed.
pub struct Done {
    pub outcome: Outcome,
    pub decisions: String,
}

impl Work<'_> {
    /// By policy and seed, in this order whatever is done first.
    pub fn run(&self) -> Vec<Vec<Done>> {
        let all = self.policies.len() * self.seeds.len();
        let done: Mutex<Vec<Option<Done>>> = Mutex::new((0..all).map(|_| None).collect());
        let (next, progress) = (AtomicUsize::new(0), Progress::new(all));
        let work = || {
            loop {
                let job = next.fetch_add(1, Ordering::Relaxed);
                if job >= all {
                    return;
                }
                let one = self.one(self.policies[job / self.seeds.len()], self.seeds[job % self.seeds.len()]);
                if let Ok(mut done) = done.lock() {
                    done[job] = Some(one);
                }
                progress.step();
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get).min(all);
        std::thread::scope(|scope| (0..processors).for_each(|_| drop(scope.spawn(work))));
        progress.end();
        let mut done = done.into_inner().unwrap_or_default().into_iter().flatten();
        self.policies.iter().map(|_| done.by_ref().take(self.seeds.len()).collect()).collect()
    }

    fn one(&self, name: Name, seed: u64) -> Done {
        let drawn;
        let requests = match self.demand {
            Demand::Recorded(requests) => requests,
            Demand::Drawn(demand) => {
                drawn = demand.requests(self.catalogue, seed);
                &drawn
            }
        };
        let shares = shares(self.catalogue, requests);
        let mut policy = name.policy(self.catalogue, self.inventory, &shares, self.limits, seed);
        let mut decisions = Decisions::new(name, seed, self.inventory, requests);
        let outcome = run(&mut *policy, self.catalogue, requests, self.course, &mut |now, step| {
            if self.with_decisions {
                decisions.note(now, step);
            }
        });
        Done { outcome, decisions: decisions.text() }
    }
}

/// How often each profile is asked for.
fn shares(catalogue: &Catalogue, requests: &[Request]) -> Vec<f64> {
    let mut counts = vec![0.0; catalogue.offers().len()];
    for (profile, slices) in requests.iter().flat_map(Request::totals) {
        counts[profile] += f64::from(slices);
    }
    let all: f64 = counts.iter().sum();
    counts.into_iter().map(|count| if all > 0.0 { count / all } else { 0.0 }).collect()
}
