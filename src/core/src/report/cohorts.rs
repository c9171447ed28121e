//! Which ClusterQueues share quota.

use std::collections::{BTreeMap, BTreeSet};

use super::input::{Name, World};

/// The Cohorts as a forest.
pub struct Cohorts {
    parents: BTreeMap<Name, Option<Name>>,
    /// The ClusterQueues in each and in what is below it.
    queues: BTreeMap<Name, BTreeSet<Name>>,
    /// The Cohorts that are below each, itself included.
    below: BTreeMap<Name, BTreeSet<Name>>,
}

impl Cohorts {
    /// Every Cohort that an object or a name tells of.
    pub fn of(world: &World) -> Self {
        let mut parents: BTreeMap<Name, Option<Name>> =
            world.cohorts.iter().map(|(name, cohort)| (name.clone(), cohort.parent.clone())).collect();
        let named = world.queues.values().filter_map(|queue| queue.cohort.clone());
        let named = named.chain(world.cohorts.values().filter_map(|cohort| cohort.parent.clone()));
        for name in named {
            parents.entry(name).or_default();
        }
        let mut cohorts = Self { parents, queues: BTreeMap::new(), below: BTreeMap::new() };
        for name in cohorts.parents.keys().cloned().collect::<Vec<_>>() {
            cohorts.queues.entry(name.clone()).or_default();
            for above in cohorts.path(&name) {
                cohorts.below.entry(above).or_default().insert(name.clone());
            }
        }
        for (name, queue) in &world.queues {
            for above in queue.cohort.as_ref().map(|cohort| cohorts.path(cohort)).into_iter().flatten() {
                cohorts.queues.entry(above).or_default().insert(name.clone());
            }
        }
        cohorts
    }

    /// A Cohort, its parent, and so on. A ring, in which Kueue admits nothing, is gone through once.
    fn path(&self, cohort: &Name) -> Vec<Name> {
        let mut path = vec![cohort.clone()];
        while let Some(parent) = path.last().and_then(|last| self.parents.get(last)?.clone()) {
            if path.contains(&parent) {
                break;
            }
            path.push(parent);
        }
        path
    }

    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.parents.keys()
    }

    /// The Cohort that one is a part of.
    pub fn parent(&self, cohort: &Name) -> Option<&Name> {
        self.parents.get(cohort)?.as_ref()
    }

    /// The ClusterQueues in a Cohort and in what is below it.
    pub fn queues(&self, cohort: &Name) -> impl Iterator<Item = &Name> + Clone {
        self.queues.get(cohort).into_iter().flatten()
    }

    /// A Cohort and those below it.
    pub fn below(&self, cohort: &Name) -> impl Iterator<Item = &Name> + Clone {
        self.below.get(cohort).into_iter().flatten()
    }

    /// The Cohort at the top of one: with all below it a ClusterQueue shares.
    pub fn top(&self, cohort: &Name) -> Name {
        self.path(cohort).pop().unwrap_or_else(|| cohort.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::{Cohort, Queue};
    use super::*;

    #[test]
    fn a_cohort_has_the_queues_of_all_below_it_and_a_ring_has_an_end() {
        let queue = |cohort: &str| Queue { cohort: Some(cohort.into()), ..Queue::default() };
        let cohort = |parent: &str| Cohort { parent: Some(parent.into()), ..Cohort::default() };
        let world = World {
            queues: [
                ("a".into(), queue("left")),
                ("b".into(), queue("right")),
                ("c".into(), Queue::default()),
            ]
            .into(),
            cohorts: [
                ("left".into(), cohort("top")),
                ("right".into(), cohort("top")),
                ("ring".into(), cohort("round")),
                ("round".into(), cohort("ring")),
            ]
            .into(),
            ..World::default()
        };
        let cohorts = Cohorts::of(&world);
        let queues =
            |name: &str| cohorts.queues(&name.into()).map(ToString::to_string).collect::<Vec<String>>();
        assert_eq!(queues("top"), ["a", "b"]);
        assert_eq!(queues("left"), ["a"]);
        assert_eq!(queues("ring"), [""; 0]);
        assert_eq!(
            cohorts.names().map(|n| &**n).collect::<Vec<_>>(),
            ["left", "right", "ring", "round", "top"]
        );
        assert_eq!(cohorts.below(&"top".into()).count(), 3);
        assert_eq!(
            (&*cohorts.top(&"left".into()), cohorts.parent(&"left".into())),
            ("top", Some(&"top".into()))
        );
    }
}
