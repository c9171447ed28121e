//! Whether the budgets of a ClusterQueue or a Cohort agree with each other and with the GPUs.

mod coverage;
mod namespaces;
mod promises;
mod units;

use std::collections::BTreeMap;

use super::desk::Desk;
use super::input::Name;
use super::mismatch::Found;
pub use promises::Excess;

/// What all reports share.
pub struct Judge<'a> {
    desk: &'a Desk<'a>,
    /// What all ClusterQueues and Cohorts together promise too much of.
    of_all: Vec<Excess>,
    /// What the members of each Cohort together do.
    of_cohorts: BTreeMap<Name, Vec<Excess>>,
    /// GiB of all GPUs of the cluster.
    all_gib: u64,
}

impl<'a> Judge<'a> {
    /// Looks at what everybody promises.
    pub fn new(desk: &'a Desk<'a>) -> Self {
        let all_gib = desk.area(&desk.ground.with_gpus().collect()).possible_gib();
        let of_all = promises::excesses(desk, &desk.all, all_gib, |flavor| {
            desk.nodes.get(flavor).cloned().unwrap_or_default()
        });
        let mut judge = Self { desk, of_all, of_cohorts: BTreeMap::new(), all_gib };
        judge.of_cohorts =
            desk.cohorts.names().map(|name| (name.clone(), judge.find_excesses_of(name))).collect();
        judge
    }

    /// What is wrong with a ClusterQueue.
    pub fn queue(&self, name: &Name) -> Found {
        let Some((lines, found)) = self.desk.queues.get(name) else { return Found::default() };
        let mut found = found.clone();
        self.check_coverage(name, lines, &mut found);
        self.check_promises(name, lines, &mut found);
        self.check_cohorts_of(name, lines, &mut found);
        self.check_units(lines, &mut found);
        self.check_namespaces(name, lines, &mut found);
        found
    }

    /// What is wrong with a Cohort.
    pub fn cohort(&self, name: &Name) -> Found {
        let mut found = self.desk.cohort_lines.get(name).map(|(_, found)| found.clone()).unwrap_or_default();
        for excess in self.of_cohorts.get(name).into_iter().flatten() {
            found.note(super::mismatch::Code::OvercommittedCohort, excess.message("promised"));
        }
        if let Some((lines, _)) = self.desk.cohort_lines.get(name) {
            self.check_units(lines, &mut found);
        }
        found
    }
}

/// Names as in a sentence: all of them, or the first few.
fn listed<'n>(names: impl IntoIterator<Item = &'n Name>) -> String {
    const SHOWN: usize = 5;
    let names: Vec<&str> = names.into_iter().map(|name| &**name).collect();
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// A noun, in the plural where there are several.
fn plural(noun: &str, count: usize) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}
