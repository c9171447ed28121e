//! The controller stands still while the world goes on, and wakes up with things in its ears that were true once. These tests
//! stop the controller of their cluster, and so run one after the other.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use slicegate::api::kueue::{CheckState, Workload};
use slicegate_rig::operator::GpuNode;
use slicegate_rig::{Process, Signal};
use tokio::sync::Mutex;

use crate::queues;
use crate::quota_loss::other_check;
use crate::shared::Group;
use crate::watched::Watched;
use crate::workload_checker::Version;

static CLUSTER: Group = Group::new(&[]);
static TURN: Mutex<()> = Mutex::const_new(());

const JOBS: [&str; 4] = ["one", "two", "three", "four"];

fn controller(place: &Watched) -> Result<Process> {
    place.rig().process("controller").context("controller")
}

async fn stop_queue(place: &Watched, policy: &str) -> Result<()> {
    let patch = json!({"spec": {"stopPolicy": policy}});
    queues::patch(&place.client, "LocalQueue", Some(place.name()), "mig", &patch).await
}

/// Waits until so many Workloads have quota.
async fn until_reserved(place: &Watched, count: usize) -> Result<()> {
    place
        .until(&format!("{count} Workloads have quota"), || async {
            let workloads = place.list::<Workload>(place.name()).await?;
            let reserved =
                workloads.iter().filter(|w| w.status.as_ref().is_some_and(|s| s.admission.is_some()));
            Ok(reserved.count() == count)
        })
        .await
}

/// Four Jobs for whose slices NVML takes its time, and the controller stopped when they are promised and not there yet; back
/// when they are there.
async fn stopped_before_the_slices_came(name: &str) -> Result<Watched> {
    let mut node = GpuNode::a30(name).slow(2000, 0);
    node.node = node.node.label("pool", name);
    let place = Watched::enter(&CLUSTER, name, vec![node]).await?;
    place.queue(json!({}), &[("1g.6gb", 4)]).await?;
    for job in JOBS {
        place.submit(&place.job(job, 1, &[("1g.6gb", 1)])).await?;
    }
    place
        .until("all are promised slices", || async {
            let claims = place.mig_node(name).await?.spec.claims;
            Ok(claims.iter().map(|claim| claim.pods).sum::<u32>() == 4)
        })
        .await?;
    controller(&place)?.signal(Signal::STOP);
    place
        .until("the slices are there", || async {
            let status = place.mig_node(name).await?.status.unwrap_or_default();
            Ok(status.summary.is_some_and(|s| s.slices == 4))
        })
        .await?;
    Ok(place)
}

fn is_ready(version: &Version, check: &str) -> bool {
    version.check(check).is_some_and(|c| c["state"] == "Ready")
}

/// Those of the Jobs that were told Ready while they had a reservation that began then.
fn ready_in<'a>(place: &'a Watched, since: &'a [Option<i64>]) -> impl Iterator<Item = &'static str> + 'a {
    JOBS.into_iter().zip(since).filter_map(|(job, since)| {
        let versions = place.workloads().versions(job);
        versions
            .iter()
            .any(|v| is_ready(v, place.name()) && v.since("QuotaReserved") == *since)
            .then_some(job)
    })
}

fn reserved_since(place: &Watched) -> Vec<Option<i64>> {
    let last = |job| place.workloads().versions(job).last().and_then(|v| v.since("QuotaReserved"));
    JOBS.into_iter().map(last).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_is_not_written_once_the_quota_is_gone() -> Result<()> {
    let _turn = TURN.lock().await;
    let place = stopped_before_the_slices_came("quota-gone").await?;
    let since = reserved_since(&place);
    let early: BTreeSet<_> = ready_in(&place, &since).collect();
    assert!(early.len() < JOBS.len(), "some still wait for their slices");
    stop_queue(&place, "Hold").await?;
    until_reserved(&place, early.len()).await?;
    controller(&place)?.signal(Signal::CONT);
    // Those that were admitted before run on; the others have no quota and are not told Ready.
    let waiting = JOBS.into_iter().filter(|job| !early.contains(job));
    for job in waiting.clone() {
        let uid = place.workload_of(place.name(), job).await?.and_then(|w| w.uid()).context("a Workload")?;
        place
            .until("its claim is given back", || async { Ok(place.claims_of(&uid).await?.is_empty()) })
            .await?;
        assert_eq!(place.told(job).await?.map(|(state, _)| state), Some(CheckState::Pending), "{job}");
        assert!(!place.workloads().versions(job).iter().any(|v| is_ready(v, place.name())), "{job}");
    }
    stop_queue(&place, "None").await?;
    for job in waiting {
        place.until_running(job, 1).await?;
    }
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_is_not_written_for_a_reservation_that_another_has_followed() -> Result<()> {
    let _turn = TURN.lock().await;
    let place = stopped_before_the_slices_came("followed").await?;
    let since = reserved_since(&place);
    let early: BTreeSet<_> = ready_in(&place, &since).collect();
    assert!(early.len() < JOBS.len(), "some still wait for their slices");
    stop_queue(&place, "Hold").await?;
    until_reserved(&place, early.len()).await?;
    stop_queue(&place, "None").await?;
    until_reserved(&place, JOBS.len()).await?;
    controller(&place)?.signal(Signal::CONT);
    for job in JOBS {
        place.until_running(job, 1).await?;
    }
    let told: BTreeSet<_> = ready_in(&place, &since).collect();
    assert_eq!(told, early, "nobody was told Ready for the first reservation after it was over");
    place.leave().await
}

/// Kueue leaves a check as it is when quota is withdrawn without an eviction, and admits in one go when it is given again and
/// all checks are Ready. If the controller is away meanwhile, there is a reservation that it has never seen.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_answer_let_in_is_given_slices_under_its_new_reservation() -> Result<()> {
    let _turn = TURN.lock().await;
    let place = other_check::place_in(&CLUSTER, "old-answer").await?;
    place.submit(&place.job("job", 2, &[("2g.12gb", 1)])).await?;
    other_check::until_ready(&place, "job").await?;
    let uid = place.workload_of(place.name(), "job").await?.and_then(|w| w.uid()).context("a Workload")?;
    let first = place.claims_of(&uid).await?;
    controller(&place)?.signal(Signal::STOP);
    stop_queue(&place, "Hold").await?;
    until_reserved(&place, 0).await?;
    other_check::says(&place, "job", "Ready").await?;
    // Two reservations alike of one second are one: what was claimed for the first holds for the second.
    let (time, _) = first[0].attempt.split_once('Z').context("a time")?;
    let second = format!("{time}Z").parse::<Timestamp>()?.as_second();
    place.until("another second", || async { Ok(Timestamp::now().as_second() > second) }).await?;
    stop_queue(&place, "None").await?;
    let admitted = || place.workloads().versions("job").iter().any(|v| v.is("Admitted"));
    place.until("it is admitted on the strength of the old answer", || async { Ok(admitted()) }).await?;
    assert!(place.running("job").await?.is_empty(), "its pods stay gated");
    controller(&place)?.signal(Signal::CONT);
    place.until_running("job", 2).await?;
    let claims = place.claims_of(&uid).await?;
    assert_eq!(claims.iter().map(|claim| claim.pods).sum::<u32>(), 2);
    assert!(
        claims.iter().all(|claim| claim.attempt != first[0].attempt),
        "they are for the new reservation: {claims:?}, not {first:?}"
    );
    place.leave().await
}
