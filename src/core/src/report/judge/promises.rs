//! Nominal quotas against what the GPUs can form.

use std::collections::{BTreeMap, BTreeSet};

use super::{Judge, listed, plural, units};
use crate::id::NodeName;
use crate::report::books::Lines;
use crate::report::desk::Desk;
use crate::report::input::{Name, Unit};
use crate::report::mismatch::{Code, Found};

/// More promised than possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// In this flavor, or in these together, which share GPUs.
    pub flavors: BTreeSet<Name>,
    /// What.
    pub unit: Unit,
    /// How much is promised.
    pub promised: u64,
    /// How much the GPUs can form, and with nothing else on them.
    pub possible: u64,
}

impl Excess {
    /// As in "flavor a30: 9 × 1g.6gb promised, 8 possible".
    pub fn message(&self, promised: &str) -> String {
        let (flavors, count) = (listed(&self.flavors), self.flavors.len());
        let together = if count > 1 { ", which share GPUs" } else { "" };
        let (of, possible) = (self.unit.times(self.promised), self.possible);
        format!("{} {flavors}{together}: {of} {promised}, {possible} possible", plural("flavor", count))
    }
}

/// What lines promise too much of: first flavor by flavor, then in flavors together that share GPUs. Flavors without GPUs, and
/// memory in another unit, are other mismatches.
pub fn excesses<'a>(
    desk: &Desk<'a>,
    lines: &Lines,
    all_gib: u64,
    nodes_of: impl Fn(&Name) -> BTreeSet<&'a NodeName>,
) -> Vec<Excess> {
    let mut groups: Vec<(BTreeSet<Name>, BTreeSet<&NodeName>)> = Vec::new();
    let mut found: Vec<Excess> = Vec::new();
    for flavor in lines.keys() {
        let nodes = nodes_of(flavor);
        if desk.with_gpus(&nodes) == 0 {
            continue;
        }
        let alone = BTreeSet::from([flavor.clone()]);
        found.extend(excesses_in(desk, lines, all_gib, &alone, &nodes));
        let (apart, sharing): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|(_, known)| known.is_disjoint(&nodes));
        groups = apart;
        let joined = sharing.into_iter().fold((alone, nodes), |(mut flavors, mut nodes), (others, more)| {
            flavors.extend(others);
            nodes.extend(more);
            (flavors, nodes)
        });
        groups.push(joined);
    }
    for (flavors, nodes) in groups.iter().filter(|(flavors, _)| flavors.len() > 1) {
        let together = excesses_in(desk, lines, all_gib, flavors, nodes);
        let known =
            |excess: &Excess| found.iter().any(|f| f.unit == excess.unit && f.flavors.is_subset(flavors));
        let fresh: Vec<Excess> = together.into_iter().filter(|excess| !known(excess)).collect();
        found.extend(fresh);
    }
    found
}

fn excesses_in(
    desk: &Desk<'_>,
    lines: &Lines,
    all_gib: u64,
    flavors: &BTreeSet<Name>,
    nodes: &BTreeSet<&NodeName>,
) -> Vec<Excess> {
    let mut promised: BTreeMap<&Unit, u64> = BTreeMap::new();
    for (unit, line) in flavors.iter().filter_map(|flavor| lines.get(flavor)).flatten() {
        if *unit != Unit::Memory || !units::is_other_unit(line.nominal, all_gib) {
            let sum = promised.entry(unit).or_default();
            *sum = sum.saturating_add(line.nominal);
        }
    }
    let nodes: BTreeSet<&NodeName> = nodes.iter().copied().collect();
    let area = desk.ground.area(&nodes);
    let excess = |(unit, promised): (&Unit, u64)| {
        let possible = match unit {
            Unit::Slices(profile) => area.possible(profile),
            Unit::Memory => area.possible_gib(),
        };
        let excess = Excess { flavors: flavors.clone(), unit: unit.clone(), promised, possible };
        (promised > possible).then_some(excess)
    };
    promised.into_iter().filter_map(excess).collect()
}

impl Judge<'_> {
    /// A ClusterQueue by itself, and with others of the cluster that are not in its cohort.
    pub(super) fn check_promises(&self, queue: &Name, lines: &Lines, found: &mut Found) {
        let alone = excesses(self.desk, lines, self.all_gib, |flavor| self.desk.nodes_for(queue, flavor));
        for excess in &alone {
            found.note(Code::NominalExceedsPhysical, excess.message("promised"));
        }
        for excess in self.of_all.iter().filter(|excess| promises(lines, excess)) {
            let (queues, cohorts) = self.promising(excess);
            let tops: BTreeSet<Option<Name>> = queues
                .iter()
                .map(|name| self.desk.world.queues.get(*name).and_then(|q| q.cohort.as_ref()))
                .chain(cohorts.iter().map(|name| Some(*name)))
                .map(|cohort| cohort.map(|cohort| self.desk.cohorts.top(cohort)))
                .collect();
            // Within one cohort it is that which is overcommitted.
            if queues.len() < 2 && cohorts.is_empty() || tops.len() == 1 && !tops.contains(&None) {
                continue;
            }
            let who = format!("promised by {} together", named(&queues, &cohorts));
            found.note(Code::NominalExceedsPhysical, excess.message(&who));
        }
    }

    /// The Cohorts that a ClusterQueue is in, as far as it has a part in what they promise too much of.
    pub(super) fn check_cohorts_of(&self, queue: &Name, lines: &Lines, found: &mut Found) {
        let Some(cohort) = self.desk.world.queues.get(queue).and_then(|queue| queue.cohort.as_ref()) else {
            return;
        };
        let above =
            self.desk.cohorts.names().filter(|name| self.desk.cohorts.below(name).any(|c| c == cohort));
        for name in above {
            for excess in
                self.of_cohorts.get(name).into_iter().flatten().filter(|excess| promises(lines, excess))
            {
                let message = format!("Cohort {name}, {}", excess.message("promised"));
                found.note(Code::OvercommittedCohort, message);
            }
        }
    }

    /// What a Cohort and all below it promise too much of together.
    pub(super) fn find_excesses_of(&self, cohort: &Name) -> Vec<Excess> {
        let Some(lines) = self.desk.lines_of_cohort(cohort) else { return Vec::new() };
        let nodes = |flavor: &Name| self.desk.nodes.get(flavor).cloned().unwrap_or_default();
        let mut found = excesses(self.desk, lines, self.all_gib, nodes);
        // What one promises by itself is its own mismatch.
        found.retain(|excess| {
            let (queues, cohorts) = self.promising(excess);
            let member = |name: &&Name| self.desk.cohorts.queues(cohort).any(|q| q == *name);
            let below = |name: &&Name| self.desk.cohorts.below(cohort).any(|c| c == *name);
            let lending = cohorts.into_iter().filter(below).count();
            lending > 0 || queues.into_iter().filter(member).count() > 1
        });
        found
    }

    /// The ClusterQueues and the Cohorts that have a part in an excess.
    fn promising(&self, excess: &Excess) -> (Vec<&Name>, Vec<&Name>) {
        let queues =
            self.desk.queues.iter().filter(|(_, (lines, _))| promises(lines, excess)).map(|(name, _)| name);
        let cohorts = self.desk.cohort_lines.iter().filter(|(_, (lines, _))| promises(lines, excess));
        (queues.collect(), cohorts.map(|(name, _)| name).collect())
    }
}

/// Whether some lines have a part in an excess.
fn promises(lines: &Lines, excess: &Excess) -> bool {
    let of = |flavor: &Name| lines.get(flavor)?.get(&excess.unit);
    excess.flavors.iter().filter_map(of).any(|line| line.nominal > 0)
}

fn named(queues: &[&Name], cohorts: &[&Name]) -> String {
    let some = |noun: &str, names: &[&Name]| {
        (!names.is_empty())
            .then(|| format!("{} {}", plural(noun, names.len()), listed(names.iter().copied())))
    };
    let both: Vec<String> =
        [some("ClusterQueue", queues), some("Cohort", cohorts)].into_iter().flatten().collect();
    both.join(" and ")
}
