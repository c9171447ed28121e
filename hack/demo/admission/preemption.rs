//! From the end of the last pod of a workload that is preempted to Ready of the one that preempts it, on a node with one GPU
//! that both need as a whole.

use std::time::Duration;

use anyhow::{Context, Result};

use super::stage::RESOURCE;
use super::{Bench, job, until};

/// What the preemptor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The same seven slices.
    Same,
    /// The GPU as one slice: seven are destroyed and one is made.
    Whole,
}

/// The times of one kind.
pub struct Preemptions {
    /// What the preemptors ask for.
    pub kind: Kind,
    /// From the last pod's end to quota reserved for the preemptor: Kueue's part.
    pub to_reserved: Vec<Duration>,
    /// From quota reserved, or from the last pod's end if that was later, to Ready: ours.
    pub to_ready: Vec<Duration>,
    /// From the last pod's end to Ready.
    pub total: Vec<Duration>,
}

impl Bench<'_> {
    /// Preemptions by priority, the kinds in turn.
    pub(super) async fn preemptions(&mut self, samples: usize) -> Result<Vec<Preemptions>> {
        let mut all = [Kind::Same, Kind::Whole].map(Preemptions::new);
        for sample in 0..samples {
            for preemptions in &mut all {
                self.preempt(preemptions, sample).await.with_context(|| preemptions.kind.name())?;
            }
        }
        Ok(all.into())
    }

    async fn preempt(&self, preemptions: &mut Preemptions, sample: usize) -> Result<()> {
        self.observer.begin();
        let (queue, pods, cpu, resource) = match preemptions.kind {
            Kind::Same => ("small-1", 7, "1", RESOURCE),
            Kind::Whole => ("small-2", 1, "7", "nvidia.com/mig-7g.80gb"),
        };
        let (victim, urgent) = (format!("victim-{queue}-{sample}"), format!("urgent-{queue}-{sample}"));
        self.submit(&job(&victim, queue, 7, "1", RESOURCE)).await?;
        until("the victim's pods have their slices", || {
            self.observer.running_of(&victim) == 7 && self.observer.in_use() == 7
        })
        .await?;
        let mut preemptor = job(&urgent, queue, pods, cpu, resource);
        preemptor["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] = "urgent".into();
        self.submit(&preemptor).await?;
        until("the preemptor's pods run", || self.observer.running_of(&urgent) == pods).await?;

        let ended = self.observer.ended(&victim).context("the victim's pods have not ended")?;
        let track = self.observer.track(&urgent);
        let (reserved, ready) = (track.reserved.context("no quota")?, track.ready.context("not Ready")?);
        preemptions.to_reserved.push(reserved.saturating_duration_since(ended));
        preemptions.to_ready.push(ready.saturating_duration_since(reserved.max(ended)));
        preemptions.total.push(ready.saturating_duration_since(ended));
        self.clear().await
    }
}

impl Preemptions {
    fn new(kind: Kind) -> Self {
        Self { kind, to_reserved: Vec::new(), to_ready: Vec::new(), total: Vec::new() }
    }
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "seven slices, reused",
            Self::Whole => "7g.80gb, made of their room",
        }
    }
}
