//! Many short Jobs whose slices displace each other's on one GPU: pods come, are allocated to and end while drains begin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use nvml_sim::StateDir;
use slicegate::api::mig_node::SliceState;
use slicegate_rig::real_operator::Gpus;
use tokio::task::JoinHandle;

use crate::support::{World, on_a_node_with};

/// Says when it has its slice and when it lets go of it.
const SHORT: &str =
    "uuid=$(env | grep SLICEGATE_MIG | cut -d= -f2); echo has $uuid; sleep 0.3; echo leaves $uuid";
/// Of these no two fit on a GPU together, but for two of the smallest.
const PROFILES: [&str; 4] = ["7g.80gb", "1g.10gb", "4g.40gb", "1g.10gb"];
const DURATION: Duration = Duration::from_secs(25);
/// Jobs that are under way at a time.
const CROWD: usize = 6;

/// When a pod had a slice, by its own word.
struct Tenure {
    pod: String,
    uuid: String,
    from: Timestamp,
    to: Timestamp,
}

#[test]
fn pods_that_are_allocated_to_while_drains_begin_share_no_slice_and_lose_none() {
    on_a_node_with(Gpus::a100(1), "storm", async |world, namespace| {
        let watch = Watch::begin(world)?;
        let begun = Instant::now();
        let mut created = 0;
        while begun.elapsed() < DURATION {
            let unfinished =
                world.list::<Job>(namespace).await?.iter().filter(|job| !is_complete(job)).count();
            for _ in unfinished..CROWD {
                let profile = PROFILES[created % PROFILES.len()];
                world.submit(namespace, &format!("job-{created}"), profile, SHORT).await?;
                created += 1;
            }
            consistent(world).await?;
        }
        world
            .until("every Job is complete", || async {
                consistent(world).await?;
                Ok(world.list::<Job>(namespace).await?.iter().all(is_complete))
            })
            .await?;
        world.nothing_leaks(&[]).await?;
        let looks = watch.end();

        let tenures = tenures(world, namespace).await?;
        ensure!(tenures.len() == created, "{} pods of {created} Jobs had a slice", tenures.len());
        let mut by_slice: BTreeMap<&str, Vec<&Tenure>> = BTreeMap::new();
        tenures.iter().for_each(|t| by_slice.entry(&t.uuid).or_default().push(t));
        for (uuid, tenures) in &mut by_slice {
            tenures.sort_by_key(|t| t.from);
            for pair in tenures.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                ensure!(first.to < second.from, "{} and {} had {uuid} together", first.pod, second.pod);
            }
        }
        for tenure in &tenures {
            let gone = looks.iter().find(|look| {
                tenure.from <= look.begun && look.ended <= tenure.to && !look.there.contains(&tenure.uuid)
            });
            ensure!(gone.is_none(), "{} had {} when it was not there: {gone:?}", tenure.pod, tenure.uuid);
        }
        // Otherwise nothing was put to the test.
        ensure!(created >= 20, "only {created} Jobs in {DURATION:?}");
        ensure!(by_slice.len() >= 5, "only {} slices were made for {created} Jobs", by_slice.len());
        ensure!(looks.len() > 100, "only {} looks at NVML", looks.len());
        let refused: Vec<String> = world
            .list::<Pod>(namespace)
            .await?
            .iter()
            .filter(|pod| {
                let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
                reason == Some("UnexpectedAdmissionError")
            })
            .map(ResourceExt::name_any)
            .collect();
        ensure!(refused.is_empty(), "the kubelet refused {refused:?}");
        Ok(())
    });
}

fn is_complete(job: &Job) -> bool {
    job.status.as_ref().and_then(|status| status.succeeded) == Some(1)
}

/// Checks what one look at the MIGNode can show: no overlap in spec and in status, and as many slices as are claimed once they
/// are not being made.
async fn consistent(world: &World<'_>) -> Result<()> {
    let node = world.mig_node().await?;
    for gpu in &node.spec.gpus {
        apart(gpu.slices.iter().map(|s| (s.start, s.size)), "spec")?;
    }
    let status = node.status.unwrap_or_default();
    let existing = status.slices.iter().filter(|s| s.gpu_instance_id.is_some());
    apart(existing.map(|s| (s.start, s.size)), "status")?;
    let lost = status.slices.iter().find(|s| s.state == SliceState::Failed);
    ensure!(lost.is_none(), "a slice has failed: {lost:?}");
    Ok(())
}

fn apart(places: impl Iterator<Item = (u8, u8)>, of: &str) -> Result<()> {
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    let overlap = places.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0);
    ensure!(overlap.is_none(), "slices overlap in {of}: {overlap:?}");
    Ok(())
}

/// What each pod said.
async fn tenures(world: &World<'_>, namespace: &str) -> Result<Vec<Tenure>> {
    let mut tenures = Vec::new();
    for pod in world.list::<Pod>(namespace).await? {
        let pod = pod.name_any();
        let log = world.real.node.logs(namespace, &pod, "main")?;
        let said = |what: &str| -> Result<Option<(Timestamp, String)>> {
            let words = log.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let found = words.into_iter().find(|words| words.get(3) == Some(&what));
            found
                .map(|words| Ok((words[0].parse()?, (*words.get(4).context("a UUID")?).to_owned())))
                .transpose()
        };
        let (Some((from, uuid)), Some((to, _))) = (said("has")?, said("leaves")?) else { continue };
        ensure!(uuid.starts_with("MIG-"), "{pod} had {uuid:?}");
        tenures.push(Tenure { pod, uuid, from, to });
    }
    Ok(tenures)
}

/// Looks at NVML all the time.
struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    task: JoinHandle<()>,
}

/// The MIG devices that there were.
#[derive(Debug)]
struct Look {
    begun: Timestamp,
    ended: Timestamp,
    there: BTreeSet<String>,
}

impl Watch {
    fn begin(world: &World<'_>) -> Result<Self> {
        let state: StateDir = world.real.gpu_state()?;
        let looks = Arc::new(Mutex::new(Vec::new()));
        let noted = looks.clone();
        let task = tokio::spawn(async move {
            let mut next = tokio::time::interval(Duration::from_millis(20));
            loop {
                next.tick().await;
                let begun = Timestamp::now();
                if let Ok(instances) = state.instances() {
                    let there = instances.iter().filter_map(|i| i.mig_uuid().map(str::to_owned)).collect();
                    noted.lock().unwrap().push(Look { begun, ended: Timestamp::now(), there });
                }
            }
        });
        Ok(Self { looks, task })
    }

    fn end(self) -> Vec<Look> {
        self.task.abort();
        std::mem::take(&mut self.looks.lock().unwrap())
    }
}
