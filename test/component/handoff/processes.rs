//! Processes that outlive their pods.

use slicegate::api::mig_node::SliceState::{Idle, InUse};

use super::rig::{P1, R1, pod, starts};
use super::{Rig, on_node};
use crate::kubelet::Pod;

const PID: u32 = 4711;

/// A pod that is deleted by force while its process goes on: where.
async fn abandoned(rig: &Rig) -> (u8, String) {
    let (pod, start) = rig.run("one").await;
    let uuid = rig.uuid_at(u32::from(start));
    rig.sim().add_process(&uuid, PID).unwrap();
    rig.until("the pod's name", |rig| rig.slice(start).unwrap().pod.as_deref() == Some("team/one")).await;
    rig.kubelet.remove(&pod);
    (start, uuid)
}

async fn told(rig: &Rig, start: u8) {
    rig.until("the process to be told", |rig| {
        let slice = rig.slice(start).unwrap();
        slice.state == InUse
            && slice.pod.is_none()
            && slice.message.is_some_and(|message| message.contains(&format!("process {PID} holds it")))
    })
    .await;
}

#[test]
fn a_process_that_outlives_its_pod_keeps_the_slice_and_the_next_pod_gets_another() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        let (start, uuid) = abandoned(&rig).await;
        // At once: the agent need not have noticed.
        let (other, at) = rig.run("two").await;
        assert_ne!(at, start);
        told(&rig, start).await;
        rig.kubelet.until("one healthy device", |k| k.healthy(R1).len() == 1).await;
        rig.until("the node to show one less", |rig| rig.api.resource(R1) == (7, 1)).await;
        rig.kubelet.end(&other);
        rig.until_state(&[at], Idle).await;
        rig.sim().remove_process(&uuid, PID).unwrap();
        rig.until_state(&[start], Idle).await;
        assert_eq!(rig.api.resource(R1), (7, 2));
        rig.check();
    });
}

#[test]
fn the_next_pod_is_refused_where_the_process_has_the_only_slice() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        let (start, uuid) = abandoned(&rig).await;
        let error = rig.kubelet.admit(&pod("two")).await.unwrap_err();
        let words = ["no slice of 1g.10gb is free on this node", "no healthy devices present"];
        assert!(words.iter().any(|word| error.contains(word)), "{error}");
        told(&rig, start).await;
        rig.want(&[]);
        rig.looks(3).await;
        assert!(rig.real_at(2).is_some(), "destroyed under a process");
        rig.want(&[(P1, 2)]);
        rig.sim().remove_process(&uuid, PID).unwrap();
        rig.until_state(&[2], Idle).await;
        assert_eq!(rig.run("three").await.1, 2);
        rig.check();
    });
}

#[test]
fn a_process_in_a_slice_that_no_pod_ever_had_is_seen() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        rig.sim().add_process(&rig.uuid_at(2), PID).unwrap();
        told(&rig, 2).await;
        assert_eq!(rig.run("one").await.1, 5);
        rig.sim().remove_process(&rig.uuid_at(2), PID).unwrap();
        rig.until_state(&[2], Idle).await;
        rig.check();
    });
}

#[test]
fn a_pod_with_processes_of_its_own_is_a_pod() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        let two = Pod::new("team", "one").app("main", R1, 2);
        let given = rig.kubelet.admit(&two).await.unwrap();
        for start in starts(&given) {
            rig.sim().add_process(&rig.uuid_at(u32::from(start)), PID).unwrap();
        }
        rig.until("the pod's name", |rig| {
            [2, 5].iter().all(|start| rig.slice(*start).unwrap().pod.as_deref() == Some("team/one"))
        })
        .await;
        rig.looks(3).await;
        assert_eq!(rig.kubelet.healthy(R1).len(), 2);
        rig.check();
    });
}
