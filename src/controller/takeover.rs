//! What a new leader does before it decides anything, so that nothing decided in another term can come true in its own.
//!
//! A leader that was stopped, or cut off, may have sent a write, or be about to send one, when it is replaced. Each write carries
//! its precondition:
//!
//! | write | precondition | comes late |
//! |---|---|---|
//! | a MIGNode's `spec` | uid, generation, term | rests on claims elsewhere and on the workload's right: **fenced off** |
//! | a MIGNode's marks | resourceVersion | refused, since the new leader has marked it |
//! | deletion of a MIGNode | uid, resourceVersion | refused likewise |
//! | Ready, Pending, Retry | uid, resourceVersion | rests on claims, slices and pods: **fenced off** |
//! | Rejected; Pending after a loss of quota | uid, resourceVersion | right as long as the Workload is as it was |
//! | a pod pinned and released | uid, resourceVersion | rests on a claim: **fenced off** |
//! | deletion of a pod | uid, resourceVersion | the pod cannot go on, whoever says so |
//! | `Active` of an AdmissionCheck | resourceVersion | refused if it was written since, otherwise put right at once |
//! | an Event | none | tells what was the case |
//! | the Lease | resourceVersion | refused, since the new leader has written it |
//!
//! What is to be fenced off, the new leader changes once, with a precondition itself: it marks each MIGNode and each gated pod of
//! a workload that has passed with its term (`slicegate.dev/term`), and gives our entry in each Workload that waits for
//! slices, or for pods to run, a later time. It learns from the answers what they are like. From then on what comes late is
//! refused by the API server, for it expects the object as it was. A leader cannot have decided on what it was changed to: it
//! looks at its lease after it has taken in what it decides on ([`super::Controller::proceed`]), and by then its lease has
//! expired.
//!
//! After an orderly release there is nothing to fence off: the lease is released only when nothing is under way.
//!
//! A ValidatingAdmissionPolicy with the Lease as its parameter would be no fence: the API server reads parameters from a
//! cache that trails the Lease by an unknown time.

use std::collections::BTreeSet;

use slicegate_core::id::{NodeName, PodUid, WorkloadUid};
use slicegate_core::plan::PodKey;
use tracing::info;

use super::writer::Outcome;
use super::{About, Controller, Done};

/// An object that a former leader may have a write under way for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exposed {
    /// A MIGNode.
    Node(NodeName),
    /// A gated pod of a workload that has passed our check.
    Pod(PodUid),
    /// A Workload that waits for slices, or for pods to run.
    Workload(WorkloadUid),
}

/// How far a takeover is.
#[derive(Debug, Default)]
pub struct Takeover {
    /// Being changed.
    touching: BTreeSet<Exposed>,
    /// Changed.
    touched: BTreeSet<Exposed>,
    over: bool,
}

impl Takeover {
    /// Notes that an object has been changed, or has not.
    pub fn end(&mut self, object: Exposed, outcome: Outcome) {
        self.touching.remove(&object);
        if outcome == Outcome::Written {
            self.touched.insert(object);
        }
    }
}

impl Controller {
    /// Goes on with the takeover; true once it is over.
    pub(super) fn take_over(&mut self, term: &str, clean: bool) -> bool {
        if self.takeover.over {
            return true;
        }
        let exposed = if clean { Vec::new() } else { self.index.exposed() };
        for object in exposed {
            if !self.takeover.touched.contains(&object) && !self.takeover.touching.contains(&object) {
                self.touch(object, term);
            }
        }
        self.takeover.over = self.takeover.touching.is_empty();
        if self.takeover.over && !clean {
            info!(
                objects = self.takeover.touched.len(),
                "what the leader before may still have sent is void"
            );
        }
        self.takeover.over
    }

    fn touch(&mut self, object: Exposed, term: &str) {
        let writer = self.writer.clone();
        let term = term.to_owned();
        let about = About::Touch(object.clone());
        self.takeover.touching.insert(object.clone());
        match object {
            Exposed::Node(node) => {
                let Some(expect) = self.index.mig_version(&node) else { return self.untouched(about) };
                self.spawn(async move {
                    let (outcome, update) = writer.mark(&node, &expect, super::VERSION, &term).await;
                    Done { about, outcome, update }
                });
            }
            Exposed::Pod(uid) => {
                let Some(pod) = self.index.snapshot().pods.get(&uid) else { return self.untouched(about) };
                let (key, expect): (PodKey, String) = (pod.key.clone(), pod.version.clone());
                self.spawn(async move {
                    let (outcome, update) = writer.touch_pod(&key, &expect, &term).await;
                    Done { about, outcome, update }
                });
            }
            Exposed::Workload(uid) => {
                let Some((key, expect, entry)) = self.index.renewed_entry(&uid) else {
                    return self.untouched(about);
                };
                self.spawn(async move {
                    let (outcome, update) = writer.set_check(&key, &expect, entry).await;
                    Done { about, outcome, update }
                });
            }
        }
    }

    /// It is gone, and with it what could be done to it.
    fn untouched(&mut self, about: About) {
        if let About::Touch(object) = about {
            self.takeover.end(object, Outcome::Written);
        }
    }
}
