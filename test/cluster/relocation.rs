//! Room in one piece, made by moving what may be moved.

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use serde_json::{Value, json};
use slicegate::api::kueue::CheckState;
use slicegate_rig::operator::GpuNode;

use crate::shared::{Group, Place, one_a30};
use crate::support::job;

static CLUSTER: Group = Group::new(&[]);

fn one_a100(name: &str) -> GpuNode {
    GpuNode::new(name, "A100-80GB", 1, "NVIDIA-A100-SXM4-80GB")
}

fn half(place: &Place, name: &str, relocatable: bool) -> Value {
    let mut job = job(&place.namespace, name, 1, &[("2g.12gb", 1)], "1000");
    if relocatable {
        job["spec"]["template"]["metadata"]["annotations"]["slicegate.dev/relocatable"] = json!("true");
    }
    job
}

/// The pods of a Job that are not on their way out.
async fn staying(place: &Place, job: &str) -> Result<Vec<String>> {
    let pods = place.staying().await?.into_iter();
    Ok(pods.filter(|p| p.owner_references().iter().any(|o| o.name == job)).map(|p| p.name_any()).collect())
}

/// Where the pods of a Job hold slices.
async fn nodes_of(place: &Place, job: &str) -> Result<Vec<String>> {
    let (held, pods) = (place.held().await?, staying(place, job).await?);
    Ok(pods.iter().filter_map(|pod| held.get(pod)).flatten().map(|held| held.node.clone()).collect())
}

async fn told(place: &Place, job: &str, state: CheckState, begins: &str) -> Result<()> {
    place
        .until(&format!("{job} is told {begins:?}"), || async {
            let told = place.check(&place.namespace, job).await?;
            Ok(told.is_some_and(|(now, message)| now == state && message.starts_with(begins)))
        })
        .await
}

async fn end(place: &Place, job: &str) -> Result<()> {
    let pods = staying(place, job).await?;
    place.end_pod(pods.first().context("a pod")?, 0).await?;
    place.until_done(job).await
}

/// Two nodes of one A30, on each of which half is in use: by `first`, which may be moved or not, and by `second`, which may not.
async fn halves(name: &str, relocatable: bool) -> Result<Place> {
    let nodes = vec![one_a30(&format!("{name}-1")), one_a30(&format!("{name}-2"))];
    let place = CLUSTER.enter(name, nodes, &[]).await?;
    for (i, job) in ["first", "gone", "also-gone", "second"].into_iter().enumerate() {
        place.submit(&half(&place, job, relocatable && job == "first")).await?;
        place.until_held_by(i + 1).await?;
    }
    for job in ["gone", "also-gone"] {
        end(&place, job).await?;
    }
    place.until_held_by(2).await?;
    assert_ne!(nodes_of(&place, "first").await?, nodes_of(&place, "second").await?);
    Ok(place)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_request_gets_through_by_moving_idle_slices() -> Result<()> {
    let place = CLUSTER.enter("idle-moves", vec![one_a100("idle-moves")], &[]).await?;
    place.submit(&job("idle-moves", "small", 4, &[("1g.10gb", 1)], "0.2")).await?;
    place.until_done("small").await?;
    let idle = place.mig_node("idle-moves").await?.status.unwrap_or_default().slices.len();
    assert_eq!(idle, 4, "they stand idle");
    place.submit(&job("idle-moves", "whole", 1, &[("7g.80gb", 1)], "0.2")).await?;
    place.until_done("whole").await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_of_which_nobody_has_been_told_makes_way() -> Result<()> {
    // Making slices on the second node takes longer than it takes to get there.
    let nodes = vec![one_a30("reserved-1"), one_a30("reserved-2").slow(10_000, 0)];
    let place = CLUSTER.enter("reserved", nodes, &[]).await?;
    for (i, job) in ["stays", "goes"].into_iter().enumerate() {
        place.submit(&half(&place, job, false)).await?;
        place.until_held_by(i + 1).await?;
    }
    place.submit(&half(&place, "early", false)).await?;
    let early = ("reserved-2".to_owned(), "job-early".to_owned());
    place
        .until("the early one has its reservation on the slow node", || async {
            let claims = place.claims().await?;
            Ok(claims.keys().any(|(node, workload, _)| *node == early.0 && workload.starts_with(&early.1)))
        })
        .await?;
    end(&place, "goes").await?;
    place.submit(&job("reserved", "whole", 1, &[("4g.24gb", 1)], "0.2")).await?;
    place
        .until("both have a place", || async {
            let claims = place.claims().await?;
            let on = |node: &str, job: &str| {
                claims.keys().any(|(n, workload, _)| n == node && workload.starts_with(&format!("job-{job}")))
            };
            Ok(on("reserved-2", "whole") && on("reserved-1", "early"))
        })
        .await?;
    place.until("the early one runs", || async { Ok(!nodes_of(&place, "early").await?.is_empty()) }).await?;
    place.until_done("whole").await?;
    place.abandon().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_owner_allows_it_is_moved_and_one_whose_owner_does_not_is_left_alone() -> Result<()> {
    let place = halves("opted-in", true).await?;
    let (first, second) = (staying(&place, "first").await?, staying(&place, "second").await?);
    let before = nodes_of(&place, "first").await?;
    place.submit(&job("opted-in", "whole", 1, &[("4g.24gb", 1)], "0.2")).await?;
    place.until_done("whole").await?;
    let note = place.event("opted-in", &first[0], "Relocated").await?;
    assert!(note.contains("its owner allows that"), "{note}");
    place
        .until("the first runs again, beside the second", || async {
            let now = nodes_of(&place, "first").await?;
            Ok(now.len() == 1 && now != before)
        })
        .await?;
    assert_ne!(staying(&place, "first").await?, first);
    assert_eq!(staying(&place, "second").await?, second);
    let first: Job = place.api("opted-in").get("first").await?;
    let conditions = first.status.and_then(|status| status.conditions).unwrap_or_default();
    assert!(
        !conditions.iter().any(|c| ["Failed", "Complete"].contains(&&*c.type_)),
        "it goes on: {conditions:?}"
    );
    place.abandon().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_tells_capacity_from_fragmentation() -> Result<()> {
    let place = halves("says-which", false).await?;
    let (first, second) = (staying(&place, "first").await?, staying(&place, "second").await?);
    place.submit(&job("says-which", "whole", 1, &[("4g.24gb", 1)], "0.2")).await?;
    told(&place, "whole", CheckState::Pending, "Waiting for room in one piece: on the nodes of flavor")
        .await?;
    place.submit(&job("says-which", "wholes", 2, &[("4g.24gb", 1)], "0.2")).await?;
    told(&place, "wholes", CheckState::Pending, "Waiting for capacity: what is claimed and in use").await?;
    // Nobody has allowed anything.
    assert_eq!((staying(&place, "first").await?, staying(&place, "second").await?), (first, second));
    let slices = place.operator.kubectl_slices();
    let kubeconfig = place.rig().kubeconfig();
    let run = tokio::process::Command::new(slices)
        .args(["explain", "whole", "-n", "says-which"])
        .env("KUBECONFIG", kubeconfig)
        .output()
        .await?;
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{text}{}", String::from_utf8_lossy(&run.stderr));
    assert!(text.contains("Cause: fragmentation.") && text.contains("One slice that moved"), "{text}");
    place.abandon().await
}
