//! Giving workloads with quota their slices, and telling Kueue how it stands.
//!
//! | our check | claims | then |
//! |---|---|---|
//! | Pending | none | place; no room: say why, keep room if it has waited long, and after the hold Retry |
//! | Pending | complete and schedulable | Ready |
//! | Pending | complete, slices not there yet | wait; say what for when it takes long |
//! | Ready, not admitted | incomplete, or slices lost | Pending, then as above |
//! | Ready, admitted | incomplete, or on a node that is lost, and a pod waits | place; impossible: Retry after the hold |
//! | Retry, Rejected | any | nothing: Kueue resets the check first |

use std::collections::{BTreeMap, BTreeSet};

use super::place::selects;
use super::quotas::Refusal;
use super::{Action, Pass};
use crate::hands::{self, Hands};
use crate::id::{Attempt, NodeName, PodSetName, WorkloadUid};
use crate::ledger::Ledger;
use crate::node::{Claim, ObservedSlice, SliceState};
use crate::profile::ProfileName;
use crate::time::Timestamp;
use crate::workload::{Check, CheckState, Demand, Nodes, PodSetDemand, Reservation, Workload};

/// What Ready says: it never changes while the check stays Ready.
pub const READY: &str = "Slices reserved and ready.";

/// What somebody without a claim has done to a workload that waits.
const TAKEN: &str = "A pod past the queue, or a process that outlived its pod, took a slice reserved";

impl Pass<'_> {
    pub(super) fn admit(&mut self) {
        let mut open: Vec<(&Workload, &Reservation)> =
            self.world.workloads.values().filter_map(|w| Some((w, w.open()?))).collect();
        // What has been let in comes first: what it has lost, it needs at once. Then what has waited longest.
        open.sort_by_cached_key(|(w, r)| (!w.passed(), w.waits_since(r), &w.key));
        let mut promised = self.promised();
        self.open_accounts();
        for (workload, reservation) in open {
            self.admit_one(workload, reservation, &mut promised);
        }
    }

    fn admit_one(&mut self, workload: &Workload, reservation: &Reservation, promised: &mut Promised) {
        if workload.checks.iter().any(|c| matches!(c.state, CheckState::Retry | CheckState::Rejected)) {
            return;
        }
        // What runs keeps running, whatever becomes of the policy or the flavor that let it in.
        let runs = workload.admitted;
        let passed = workload.passed();
        let demand = match &reservation.demand {
            Demand::Unknown(_) | Demand::Invalid(_) if runs => return,
            Demand::Slices(demand) => demand,
            Demand::Unknown(reason) => return self.turn_away(workload, reservation, passed, reason),
            Demand::Invalid(reason) => return self.tell(workload, CheckState::Rejected, reason),
        };
        if demand.is_empty() {
            return self.tell(workload, CheckState::Ready, "No MIG slices asked for.");
        }
        if !runs && workload.checks.iter().any(|c| c.policy.is_none()) {
            return self.turn_away(
                workload,
                reservation,
                passed,
                "The AdmissionCheck is not active; see its Active condition.",
            );
        }
        if self.is_early(workload, reservation) {
            return;
        }
        if let Nodes::Awaited(check) = &workload.nodes
            && !runs
        {
            let message = format!("Waiting for AdmissionCheck {check} to bring nodes.");
            return self.tell(workload, CheckState::Pending, &message);
        }
        if !runs && let Err(refusal) = self.hold_against_quotas(workload, reservation) {
            return self.refuse(workload, reservation, refusal);
        }
        let placed = if runs {
            self.place_again(workload, &reservation.attempt, demand)
        } else {
            self.leave_silent_nodes(workload, &reservation.attempt, demand);
            self.place_waiting(workload, &reservation.attempt, demand)
        };
        if let Err(mut obstacle) = placed {
            *self.plan.blocked.entry(obstacle.cause).or_default() += 1;
            if !runs {
                self.give_up(workload, &reservation.attempt);
                if obstacle.cause.is_about_room() && !passed {
                    self.relocate(workload, reservation, demand);
                }
                obstacle = self.keep_room(workload, reservation, demand, obstacle);
            }
            let told =
                obstacle.earlier.filter(|earlier| workload.checks.iter().any(|c| c.message == *earlier));
            return self.turn_away(workload, reservation, passed, &told.unwrap_or(obstacle.message));
        }
        // What runs is counted already.
        if !runs {
            self.promise_quota(workload);
        }
        if passed {
            self.promise_more(workload, &reservation.attempt, promised);
            // Nothing is left to be told; and what it has is promised already.
            if runs {
                return;
            }
        }
        if self.schedulable(workload, reservation, demand, passed, promised) {
            let mine =
                |label: &Option<WorkloadUid>| label.clone().unwrap_or_else(|| workload.key.uid.clone());
            let label = demand.iter().map(|p| (p.name.clone(), mine(&p.label)));
            // The others' pods count against quotas, so it must be known whose they are.
            let others = workload.bystanders.iter().map(|(name, label)| (name.clone(), mine(label)));
            let label: Vec<_> = label.chain(others).collect();
            for check in workload.checks.iter().filter(|c| c.state != CheckState::Ready) {
                self.set_check(workload, check, CheckState::Ready, READY, &label);
            }
        } else if passed {
            let message = match self.robbed_on(workload, demand) {
                Some(nodes) => format!("{TAKEN} on {nodes}; waiting for another to be made."),
                None => "A reserved slice was lost; waiting for it to be made again.".to_owned(),
            };
            self.tell(workload, CheckState::Pending, &message);
        } else {
            self.wait_for_slices(workload, reservation, demand);
        }
    }

    /// A workload that quotas do not let in has no use for slices.
    fn refuse(&mut self, workload: &Workload, reservation: &Reservation, refusal: Refusal) {
        match refusal {
            // The next event will tell; if none comes, time does.
            Refusal::Unsettled => self.recheck(reservation.since + self.limits.patience),
            Refusal::Waits(obstacle) => {
                *self.plan.blocked.entry(obstacle.cause).or_default() += 1;
                self.turn_away(workload, reservation, workload.passed(), &obstacle.message);
            }
            Refusal::Rejected(message) => {
                self.give_up(workload, &reservation.attempt);
                self.tell(workload, CheckState::Rejected, &message);
            }
        }
    }

    /// Moves what waits on a node whose agent does not answer, or that is not ready, or on which its pods may not run any more
    /// (another check has spoken, or a label or a policy has changed) to another.
    fn leave_silent_nodes(&mut self, workload: &Workload, attempt: &Attempt, demand: &[PodSetDemand]) {
        let occupied: BTreeSet<NodeName> =
            self.live_pods(&workload.key).filter_map(|pod| self.whereabouts(pod)).collect();
        let theirs = |c: &Claim| c.attempt == *attempt;
        let mut left: BTreeSet<(NodeName, PodSetName)> = BTreeSet::new();
        for (name, book) in self.books_of(&workload.key.uid).filter(|(name, _)| !occupied.contains(*name)) {
            let Some(node) = self.world.nodes.get(name) else { continue };
            let leaves = |pod_set: &PodSetName| {
                self.unfit.contains(name) || demand.iter().any(|p| p.name == *pod_set && !selects(node, p))
            };
            let claims = book.claims().iter();
            let claims =
                claims.filter(|c| c.workload.uid == workload.key.uid && theirs(c) && leaves(&c.pod_set));
            left.extend(claims.map(|claim| (name.clone(), claim.pod_set.clone())));
        }
        if !left.is_empty() {
            self.drop_claims_of(&workload.key.uid, |name, claim| {
                theirs(claim) && left.contains(&(name.clone(), claim.pod_set.clone()))
            });
        }
        if let Some(since) = self.lagging_since {
            self.recheck(since + self.limits.agent_silence);
        }
    }

    fn turn_away(&mut self, workload: &Workload, reservation: &Reservation, passed: bool, obstacle: &str) {
        self.give_up(workload, &reservation.attempt);
        if passed && workload.admitted {
            // Its pods are gated as long as it has no claim: nothing runs, so its quota is better given to others.
            if self.has_live_pods(&workload.key) || !self.may_start_over(workload) {
                self.obstacles.insert(workload.key.uid.clone(), obstacle.to_owned());
            } else {
                self.tell(workload, CheckState::Retry, &format!("The reservation was lost. {obstacle}"));
            }
            return;
        }
        let until = workload.held_until(reservation);
        if self.may_start_over(workload) && !passed && until <= self.now {
            self.tell(workload, CheckState::Retry, obstacle);
        } else {
            self.recheck(until);
            self.tell(workload, CheckState::Pending, obstacle);
        }
    }

    /// Whether a workload may be evicted for want of slices. A job that has been made larger may not, as long as it has what it
    /// had before: Kueue would end the pods that run, and cannot start it again (0.18: its own annotations are in the way).
    /// That no pod runs may be the moment between one pod and the next.
    pub(super) fn may_start_over(&self, workload: &Workload) -> bool {
        let has_claims = || {
            let mut books = self.books_of(&workload.key.uid);
            books.any(|(_, book)| book.claims().iter().any(|c| c.workload.uid == workload.key.uid))
        };
        workload.replaces.is_none() || !self.has_live_pods(&workload.key) && !has_claims()
    }

    /// Strikes out what a reservation has claimed, unless something may run on it. What an earlier one has left is released
    /// in its own time.
    fn give_up(&mut self, workload: &Workload, attempt: &Attempt) {
        if !self.has_live_pods(&workload.key) && self.may_start_over(workload) {
            self.drop_claims_of(&workload.key.uid, |_, c| c.attempt == *attempt);
        }
    }

    fn wait_for_slices(&mut self, workload: &Workload, reservation: &Reservation, demand: &[PodSetDemand]) {
        // Room may have been found late: the agents' time begins then.
        let begun = self.begun(&workload.key.uid).max(reservation.since);
        let patience = begun + self.limits.patience;
        if self.now < patience {
            return self.recheck(patience);
        }
        let until =
            workload.held_until(reservation).max(reservation.since + self.limits.patience).max(patience);
        let nodes = self.claimed_on(workload, demand);
        if self.may_start_over(workload) && until <= self.now {
            self.give_up(workload, &reservation.attempt);
            self.tell(
                workload,
                CheckState::Retry,
                &format!(
                    "The slices reserved on {nodes} could not be made in time; see the MIGNode's slices."
                ),
            );
        } else {
            self.recheck(until);
            let message = match self.robbed_on(workload, demand) {
                Some(nodes) => format!("{TAKEN} on {nodes}; waiting for another to be made."),
                None => format!("Slices reserved on {nodes}; waiting for the node agent to make them."),
            };
            self.tell(workload, CheckState::Pending, &message);
        }
    }

    /// The nodes on which the workload has claims.
    pub(super) fn claimed_on(&self, workload: &Workload, demand: &[PodSetDemand]) -> String {
        let claimed = |book: &&Ledger| demand.iter().any(|p| book.pods_of(&workload.key.uid, &p.name) > 0);
        let books = self.books_of(&workload.key.uid).map(|(_, book)| book);
        let nodes: Vec<&str> = books.filter(claimed).map(|book| book.name.as_str()).collect();
        nodes.join(", ")
    }

    /// The nodes on which slices like those that the workload has claimed there are held by somebody without a claim.
    fn robbed_on(&self, workload: &Workload, demand: &[PodSetDemand]) -> Option<String> {
        let robbed = |book: &&Ledger| {
            demand.iter().any(|pod_set| {
                book.pods_of(&workload.key.uid, &pod_set.name) > 0
                    && pod_set.slices.keys().any(|profile| book.taken().contains_key(profile))
            })
        };
        let books = self.books_of(&workload.key.uid).map(|(_, book)| book);
        let nodes: Vec<&str> = books.filter(robbed).map(|book| book.name.as_str()).collect();
        (!nodes.is_empty()).then(|| nodes.join(", "))
    }

    /// Since when the agents have been at work on what a workload claims.
    pub(super) fn begun(&self, workload: &WorkloadUid) -> Timestamp {
        let mut begun = Timestamp::default();
        for (name, book) in self.books_of(workload) {
            let Some(mig) = self.world.nodes.get(name).and_then(|n| n.mig.as_ref()) else { continue };
            for claim in book.claims().iter().filter(|c| c.workload.uid == *workload) {
                let unwritten = (!mig.confirmed.claims.contains(claim)).then_some(self.now);
                let creating = mig.slices.iter().filter(|o| o.slice.profile == claim.profile);
                let creating = creating.filter(|o| o.state == SliceState::Creating).map(|o| o.since);
                begun = unwritten
                    .into_iter()
                    .chain(mig.lagging_since)
                    .chain(creating)
                    .fold(begun, Timestamp::max);
            }
        }
        begun
    }

    /// Whether the claims are durable and every slice that they count on is there, beside what others were promised.
    fn schedulable(
        &self,
        workload: &Workload,
        reservation: &Reservation,
        demand: &[PodSetDemand],
        passed: bool,
        promised: &mut Promised,
    ) -> bool {
        let mut mine: BTreeMap<(NodeName, ProfileName), u32> = BTreeMap::new();
        for pod_set in demand {
            let mut pods = 0;
            for node in self.nodes_of(&workload.key.uid).filter_map(|name| self.world.nodes.get(name)) {
                let Some(mig) = &node.mig else { continue };
                let claims = mig.lasting_claims().filter(|c| {
                    c.workload.uid == workload.key.uid
                        && c.attempt == reservation.attempt
                        && c.pod_set == pod_set.name
                });
                let mut here = 0;
                for claim in claims {
                    here = here.max(claim.pods);
                    *mine.entry((node.name.clone(), claim.profile.clone())).or_default() += claim.slices;
                }
                if here
                    > self.books.get(&node.name).map_or(0, |b| b.pods_of(&workload.key.uid, &pod_set.name))
                {
                    return false;
                }
                pods += here;
            }
            if pods < pod_set.pods {
                return false;
            }
        }
        let me = (workload.key.uid.clone(), reservation.attempt.clone());
        let already = promised.to.contains(&me);
        let enough = mine.iter().all(|(place, slices)| {
            let others = promised.slices.get(place).copied().unwrap_or(0) - if already { *slices } else { 0 };
            let there = self.usable(&place.0, &place.1, passed);
            others + slices <= there
        });
        if enough && !already {
            promised.to.insert(me);
            for (place, slices) in mine {
                *promised.slices.entry(place).or_default() += slices;
            }
        }
        enough
    }

    /// Slices of a profile that `spec` wants and pods can have: what the API server holds and the agent confirms, without those
    /// that are taken. Those that a pod has not let go of yet are good enough to stay Ready, though not to become so.
    fn usable(&self, name: &NodeName, profile: &ProfileName, passed: bool) -> u32 {
        let Some(mig) = self.world.nodes.get(name).and_then(|n| n.mig.as_ref()) else { return 0 };
        let in_use: Vec<(&ObservedSlice, &Hands)> =
            self.in_use(name, mig).into_iter().filter(|(o, _)| o.slice.profile == *profile).collect();
        let idle = mig.slices.iter().filter(|o| {
            o.slice.profile == *profile && o.state == SliceState::Idle && self.wants(name, mig, o)
        });
        let there =
            in_use.iter().filter(|(_, hands)| passed || **hands != Hands::Leaving).count() + idle.count();
        let taken = hands::taken(
            in_use.iter().map(|(_, hands)| (profile, *hands)),
            &mig.confirmed.claims,
            &self.heirs,
        );
        let taken = taken.get(profile).copied().unwrap_or(0);
        u32::try_from(there).unwrap_or(u32::MAX).saturating_sub(taken)
    }

    /// What Kueue has been told is ready, and what pods may still be using though their workload is over.
    fn promised(&self) -> Promised {
        let mut promised = Promised::default();
        for node in self.world.nodes.values() {
            let Some(mig) = &node.mig else { continue };
            for claim in &mig.confirmed.claims {
                let uid = &claim.workload.uid;
                let waits = self.world.workloads.get(uid).is_some_and(|w| {
                    w.open().is_some_and(|r| r.attempt == claim.attempt)
                        && !w.admitted
                        && w.checks.iter().any(|c| c.state != CheckState::Ready)
                });
                // Pods of a job that is to be larger run on what they have before the whole of it is ready.
                let waits = waits && !self.has_live_pods(&claim.workload);
                if !waits {
                    promised.to.insert((uid.clone(), claim.attempt.clone()));
                    *promised.slices.entry((node.name.clone(), claim.profile.clone())).or_default() +=
                        claim.slices;
                }
            }
        }
        promised
    }

    /// Adds to what is promised the claims that a workload that has passed is to have from now on: nobody else is told that
    /// slices for them are his.
    fn promise_more(&self, workload: &Workload, attempt: &Attempt, promised: &mut Promised) {
        let theirs = |claim: &&Claim| claim.workload.uid == workload.key.uid && claim.attempt == *attempt;
        for (name, book) in self.books_of(&workload.key.uid) {
            let confirmed =
                self.world.nodes.get(name).and_then(|n| n.mig.as_ref()).map(|m| &m.confirmed.claims);
            for claim in book.claims().iter().filter(theirs) {
                let before = confirmed.into_iter().flatten().find(|c| c.is_for_the_same(claim));
                let before = before.map_or(0, |c| c.slices);
                let more = claim.slices.saturating_sub(before);
                *promised.slices.entry((name.clone(), claim.profile.clone())).or_default() += more;
            }
        }
    }

    /// Sets every check of the workload that does not say so already.
    pub(super) fn tell(&mut self, workload: &Workload, state: CheckState, message: &str) {
        for check in &workload.checks {
            let known = check.state == state && (check.message == message || state == CheckState::Ready);
            if !known {
                self.set_check(workload, check, state, message, &[]);
            }
        }
    }

    pub(super) fn set_check(
        &mut self,
        workload: &Workload,
        check: &Check,
        state: CheckState,
        message: &str,
        label: &[(PodSetName, WorkloadUid)],
    ) {
        // Only one write to a Workload at a time: the second would carry the same precondition and fail.
        let under_way = |action: &Action| matches!(action, Action::SetCheck { workload: w, .. } if w.uid == workload.key.uid);
        if workload.busy || self.plan.actions.iter().any(under_way) {
            return;
        }
        self.plan.actions.push(Action::SetCheck {
            workload: workload.key.clone(),
            expect: workload.version.clone(),
            check: check.name.clone(),
            from: check.state,
            state,
            message: message.to_owned(),
            label: label.to_vec(),
        });
    }
}

/// Slices that are spoken for on each node.
#[derive(Default)]
struct Promised {
    to: BTreeSet<(WorkloadUid, Attempt)>,
    slices: BTreeMap<(NodeName, ProfileName), u32>,
}
