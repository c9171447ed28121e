//! One step: decide, act, advertise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use slicegate_core::agent::{Instance, Offer, Operation, agent_step, servable};
use slicegate_core::geometry::{Place, Slice};
use slicegate_core::id::GpuUuid;
use slicegate_core::time::Timestamp;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{Agent, Message};
use crate::agent::cdi::SliceDevice;
use crate::agent::gpus::{Done, Look, OperationError};
use crate::agent::handoff::{Handoff, Open, Shown};
use crate::agent::mig_mode::Outcome;
use crate::agent::{PAUSE, ensure};
use crate::api::convert::now;

impl Agent {
    /// Decides, acts, advertises, reports. Returns how long to wait if nothing happens.
    pub async fn step(&mut self) -> Option<Duration> {
        let moment = now();
        if self.missing && !self.make_object().await {
            return Some(PAUSE);
        }
        let wanted = self.wanted.clone().unwrap_or_default();
        self.prepare(&wanted);
        let shown = self.offer(&wanted);
        let advertised = if shown.known {
            let memory = self.gpus.memory();
            self.means.node_status.advertise(&shown.capacity, &shown.allocatable, memory).await
        } else {
            Ok(false)
        };
        let serves = servable(&wanted, self.gpus.views());
        self.note_offers(&serves, &shown, matches!(advertised, Ok(true)));
        self.act(moment, &wanted);
        self.ask_for_mig_mode();
        self.register(&wanted);

        let step = agent_step(moment, &wanted, self.gpus.views(), &self.reports);
        let settled = serves.iter().all(|place| shown.settled.contains(&place.slice.profile));
        let kubelet_due = match &mut self.handoff {
            Handoff::Kubelet(kubelet) => {
                // Another plugin may take our place at any time.
                let alone =
                    self.plugins.is_empty() && kubelet.seen().is_none_or(|seen| seen.strange.is_empty());
                kubelet.look(alone && settled && shown.settled.len() == shown.capacity.len())
            }
            Handoff::StandIn(_) => None,
        };
        if let Err(error) = advertised {
            warn!(%error, "cannot advertise on the node; trying again");
            return Some(PAUSE);
        }
        self.reports = step.reports;
        self.means.metrics.set_slices(&self.reports);
        let report_due = match self.report(moment).await {
            Ok(due) => due,
            Err(error) => {
                warn!(%error, "cannot report; trying again");
                return Some(PAUSE);
            }
        };
        let recheck = step.recheck_at.map(|at| (at - now()).max(Duration::from_millis(1)));
        recheck.into_iter().chain(kubelet_due).chain(report_due).chain(self.look_for_ends()).min()
    }

    /// Makes the MIGNode again. The controller removes that of a Node that is gone; only a Node that is there gets a new one.
    async fn make_object(&mut self) -> bool {
        match self.means.node_status.refresh().await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                warn!(%error, "cannot read the node");
                return false;
            }
        }
        if let Err(error) = ensure(&self.means.mig_nodes, &self.means.name).await {
            warn!(%error, "MIGNode");
            return false;
        }
        self.missing = false;
        self.written = None;
        true
    }

    /// Settles what is ours, who has it, and what stands in its way.
    fn prepare(&mut self, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) {
        let uuids = std::mem::take(&mut self.ours_before);
        {
            let journal = &mut self.book.lock().journal;
            // What an agent reported with its MIG device's UUID, it had made.
            if journal.is_new && !uuids.is_empty() {
                self.gpus.adopt(&uuids, journal);
            }
            // With a kubelet, who has what is still to be found out.
            if journal.is_new
                && matches!(self.handoff, Handoff::StandIn(_))
                && let Err(error) = journal.complete()
            {
                warn!(%error, "journal");
            }
        }
        if let Handoff::StandIn(stand_in) = &mut self.handoff {
            stand_in.settle();
        }
        self.gpus.forget_failures(wanted);
        self.note_holders();
        self.write_cdi();
    }

    fn note_holders(&mut self) {
        let mut processes = BTreeMap::new();
        for (place, instance) in self.gpus.whole() {
            processes
                .extend(self.gpus.process(&place.gpu, instance.id).map(|process| (place.clone(), process)));
        }
        let book = self.book.clone();
        let (handoff, remake) = (&self.handoff, self.remake_after_use);
        self.gpus.annotate(|place, instance| {
            instance.holder = handoff.holder(place).or_else(|| processes.get(place).cloned());
            instance.spent = remake && book.lock().journal.is_used(&place.gpu, &place.slice);
            let uuid = instance.compute.as_ref().map(|compute| compute.uuid.as_str());
            instance.misnamed = uuid.is_some_and(|uuid| handoff.is_misnamed(place, uuid));
        });
    }

    /// Writes the CDI specifications of what there is; without its own no slice is offered.
    fn write_cdi(&mut self) {
        let Some(cdi) = &mut self.means.cdi else { return };
        let device = |(place, i): (Place, &Instance)| {
            let (index, minor) = self.gpus.numbers(&place.gpu)?;
            let compute = i.compute.as_ref()?;
            Some(SliceDevice {
                gpu: place.gpu,
                gpu_index: index,
                gpu_minor: minor,
                slice: place.slice,
                mig_uuid: compute.uuid.clone(),
                gpu_instance: i.id,
                compute_instance: compute.id,
            })
        };
        let devices: Vec<SliceDevice> = self.gpus.whole().filter_map(device).collect();
        if self.described.as_ref() != Some(&devices) {
            let obstacle = cdi.sync(&devices).err().map(|error| error.to_string());
            if let Some(error) = obstacle.as_ref().filter(|_| obstacle != self.obstacle) {
                warn!(error, "slices cannot be offered");
            }
            // What failed is tried again at the next full look.
            self.described = Some(devices);
            self.obstacle = obstacle;
        }
        // What pods have and was offered before stays: its specification was written once.
        let obstacle = self.obstacle.clone().unwrap_or_default();
        let handoff = &self.handoff;
        self.gpus.annotate(|place, instance| {
            let offered = instance.holder.is_some() || instance.offer == Offer::Shown;
            let ready = offered || cdi.is_ready(&place.gpu, &place.slice);
            let undescribed = (!ready && instance.compute.is_some()).then(|| obstacle.clone());
            instance.obstacle = undescribed.or_else(|| handoff.obstacle(place));
        });
    }

    fn offer(&mut self, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) -> Shown {
        let serves = servable(wanted, self.gpus.views());
        let mut open: Vec<(Place, u32, String)> = self
            .gpus
            .whole()
            .filter(|(place, _)| serves.contains(place))
            .filter_map(|(place, i)| {
                let (index, _) = self.gpus.numbers(&place.gpu)?;
                Some((place, index, i.compute.as_ref()?.uuid.clone()))
            })
            .collect();
        open.sort_by(|a, b| (a.1, &a.0.slice).cmp(&(b.1, &b.0.slice)));
        let capacity = self.gpus.capacity();
        let shown = self.handoff.offer(Open(open), &capacity);
        // Who was given something by that, where there is no kubelet.
        if matches!(self.handoff, Handoff::StandIn(_)) {
            self.note_holders();
        }
        shown
    }

    /// Notes how far slices are in pods' sight.
    fn note_offers(&mut self, serves: &BTreeSet<Place>, shown: &Shown, on_node: bool) {
        let handoff = &self.handoff;
        self.gpus.annotate(|place, instance| {
            let settled = on_node && shown.settled.contains(&place.slice.profile);
            instance.offer = match (serves.contains(place), instance.offer) {
                // What is half made never was.
                _ if instance.compute.is_none() => Offer::Withdrawn,
                (true, Offer::Shown) => Offer::Shown,
                (true, _) if settled => Offer::Shown,
                (false, Offer::Withdrawn) => Offer::Withdrawn,
                (false, _) if settled && handoff.is_free(place) => Offer::Withdrawn,
                (false, _) if !shown.capacity.contains_key(&place.slice.profile) => Offer::Withdrawn,
                _ => Offer::Pending,
            };
        });
    }

    /// Begins what is to be done. Nothing is made that could not be told from somebody else's after a crash.
    fn act(&mut self, moment: Timestamp, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) {
        let step = agent_step(moment, wanted, self.gpus.views(), &self.reports);
        let creates = step.operations.iter().filter(|(_, o)| matches!(o, Operation::Create(_)));
        let intended =
            self.book.lock().journal.intend(creates.map(|(gpu, operation)| (gpu, operation.slice())));
        if let Err(error) = &intended {
            warn!(%error, "nothing is made");
            self.gpus.problems = vec![error.to_string()];
        }
        for (gpu, operation) in step.operations {
            let may = match &operation {
                Operation::Create(_) => intended.is_ok(),
                // Once more, since pods may have come in between.
                Operation::Destroy { slice, .. } => self.handoff.is_free(&Place::new(&gpu, slice)),
            };
            if may {
                self.begin(&gpu, operation);
            }
        }
    }

    fn begin(&mut self, gpu: &GpuUuid, operation: Operation) {
        let Some((index, _)) = self.gpus.numbers(gpu) else { return };
        debug!(%gpu, ?operation, "begins");
        self.gpus.mark(gpu, operation.clone());
        let (driver, messages, gpu) = (self.means.driver.clone(), self.means.messages.clone(), gpu.clone());
        tokio::spawn(async move {
            let work = spawn_blocking(move || {
                let result = match &operation {
                    Operation::Create(slice) => {
                        driver.create(index, slice).map(Some).map_err(OperationError::Create)
                    }
                    Operation::Destroy { id, slice } => {
                        driver.destroy(index, *id, slice).map(|()| None).map_err(OperationError::Destroy)
                    }
                };
                let look = result.is_err().then(|| Look::now(&driver, index));
                Done { gpu, operation, result, look }
            });
            if let Ok(done) = work.await {
                // Nobody listens any more only when the agent ends.
                let _ = messages.send(Message::Done(Box::new(done))).await;
            }
        });
    }

    /// Asks for MIG mode where it is off, if that is the agent's to do and nobody uses whole GPUs.
    fn ask_for_mig_mode(&mut self) {
        if self.mig_modes.is_none() {
            return;
        }
        let obstacle = match &self.handoff {
            // Who has whole GPUs is not known yet.
            Handoff::Kubelet(kubelet) if kubelet.seen().is_none() => return,
            _ => self.whole_gpu_use(),
        };
        let Some(modes) = &mut self.mig_modes else { return };
        for (gpu, index) in modes.due(self.gpus.list(), obstacle.as_deref()) {
            let (driver, messages) = (self.means.driver.clone(), self.means.messages.clone());
            tokio::spawn(async move {
                let asked = spawn_blocking(move || Outcome::of_asking(&driver, index)).await;
                if let Ok(outcome) = asked {
                    // Nobody listens any more only when the agent ends.
                    let _ = messages.send(Message::MigMode(gpu, index, outcome)).await;
                }
            });
        }
    }

    /// Registers with the kubelet once everything that is wanted has been made or has failed: after a reboot pods would
    /// otherwise be admitted, or refused, before their slices are there again.
    fn register(&mut self, wanted: &BTreeMap<GpuUuid, Vec<Slice>>) {
        let Handoff::Kubelet(kubelet) = &mut self.handoff else { return };
        let views = self.gpus.views();
        let is_due = |(gpu, slices): (&GpuUuid, &Vec<Slice>)| {
            views.get(gpu).is_none_or(|view| {
                slices.iter().all(|slice| {
                    view.unusable.is_some()
                        || view.broken.is_some()
                        || view
                            .instances
                            .iter()
                            .any(|i| i.slice == *slice && (i.compute.is_some() || !i.ours))
                        || view.failures.iter().any(|f| f.operation.slice() == slice)
                })
            })
        };
        if wanted.iter().all(is_due) || !self.gpus.is_busy() {
            kubelet.begin();
        }
    }
}
