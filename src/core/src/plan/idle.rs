//! Which slices that nobody has claimed are kept for the next request, and for how long.
//!
//! A slice that is there already costs a request nothing, but its room is cut. So of each profile as many are kept as requests of
//! late let expect ([`crate::engine::rate`]), and at least one; each no longer than the policies grant
//! (`idleSliceRetentionSeconds`). Of more, those go first that have been idle longest. What is in the way of a request goes at
//! once, and of as many the profile that is asked for least.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::Pass;
use crate::geometry::Place;
use crate::id::NodeName;
use crate::node::Node;
use crate::profile::ProfileName;
use crate::time::Timestamp;

/// A slice that nobody has claimed.
struct Idle {
    since: Timestamp,
    node: NodeName,
    place: Place,
    /// For how long at most it is kept.
    retention: Duration,
}

impl<'a> Pass<'a> {
    /// Lets go of slices that are not worth keeping.
    pub(super) fn let_idle_go(&mut self) {
        for (profile, mut idle) in self.unclaimed() {
            // The first are the last to go.
            idle.sort_by(|a, b| {
                (Reverse(a.since), &a.node, &a.place).cmp(&(Reverse(b.since), &b.node, &b.place))
            });
            let mut kept = 0;
            for Idle { since, node, place, retention } in idle {
                let wanted = self.world.rates.expects_more_than(kept, &profile, retention);
                let until = (since + retention).min(wanted.unwrap_or(Timestamp(i64::MAX)));
                if until > self.now {
                    self.recheck(until);
                    kept += 1;
                    *self.plan.idle_units.entry(profile.clone()).or_default() += u32::from(place.slice.size);
                } else if let Some(book) = self.books.get_mut(&node) {
                    book.let_go(&place);
                }
            }
        }
    }

    /// The slices that nobody has claimed, by profile.
    fn unclaimed(&self) -> BTreeMap<ProfileName, Vec<Idle>> {
        let mut idle: BTreeMap<ProfileName, Vec<Idle>> = BTreeMap::new();
        for (node, book) in &self.books {
            let spares = book.idle_spares();
            if spares.is_empty() {
                continue;
            }
            let retention = self.retention(self.world.nodes.get(node));
            for (place, since) in spares {
                let profile = place.slice.profile.clone();
                let one = Idle { since, node: node.clone(), place, retention };
                idle.entry(profile).or_default().push(one);
            }
        }
        idle
    }

    /// The longest time that a policy which applies to a node grants to slices without a claim. Where none does, the default.
    fn retention(&self, node: Option<&'a Node>) -> Duration {
        let policies = node.into_iter().flat_map(|node| self.policies_of(node));
        policies.map(|policy| policy.idle_retention).max().unwrap_or(self.limits.idle_retention)
    }
}
