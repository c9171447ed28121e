//! What befalls a kubelet.

use std::sync::atomic::Ordering;

use slicegate::api::mig_node::SliceState::{Idle, InUse};
use slicegate_kubelet_api::checkpoint;
use slicegate_kubelet_api::device_plugin::HEALTHY;

use super::rig::{P1, R1, pod, starts};
use super::{Rig, on_node};
use crate::kubelet::{Plugin, Pod};

/// A node with two slices, of which a pod has one: the pod and where.
async fn in_use(rig: &mut Rig) -> (Pod, u8) {
    rig.agent().await;
    rig.want(&[(P1, 2), (P1, 5)]);
    rig.until_state(&[2, 5], Idle).await;
    let (pod, start) = rig.run("one").await;
    rig.until("the pod's name", |rig| rig.slice(start).unwrap().pod.as_deref() == Some("team/one")).await;
    (pod, start)
}

/// The pod still has its slice, and the other can be given.
async fn as_before(rig: &Rig, pod: &Pod, start: u8) {
    rig.until("all to be well", |rig| rig.ready().1 == "Ready").await;
    rig.until_state(&[start], InUse).await;
    rig.until_state(&[7 - start], Idle).await;
    rig.kubelet.until("the devices to be healthy", |k| k.healthy(R1).len() == 2).await;
    rig.kubelet.until("no other binding", |_| rig.bindings().len() == 1).await;
    assert_eq!(rig.kubelet.admit(pod).await.map(|given| starts(&given)), Ok(vec![start]));
    let (other, at) = rig.run("other").await;
    assert_eq!(at, 7 - start);
    rig.kubelet.end(&other);
    rig.kubelet.end(pod);
    rig.until_state(&[2, 5], Idle).await;
    rig.check();
}

async fn complains(rig: &Rig, of: &str) {
    rig.until(&format!("a condition about {of:?}"), |rig| {
        let (status, reason, message) = rig.ready();
        status == "False" && reason == "KubeletUnavailable" && message.contains(of)
    })
    .await;
}

#[test]
fn a_kubelet_that_restarts_gets_its_devices_back_and_so_does_the_node() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        rig.kubelet.restart().await;
        rig.api.set_resource(R1, (0, 0));
        rig.kubelet.until("the devices to be healthy again", |k| k.healthy(R1).len() == 2).await;
        rig.until("the node to show them again", |rig| rig.api.resource(R1) == (7, 2)).await;
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn while_the_kubelet_is_down_nothing_is_lost_and_the_condition_says_so() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        rig.kubelet.stop().await;
        complains(&rig, "no kubelet listens on").await;
        assert_eq!((rig.state(start), rig.bindings().len()), (Some(InUse), 1));
        rig.want(&[(P1, 2)]);
        rig.until("the wish to be seen", |rig| rig.api.status().observed_generation == Some(3)).await;
        assert_eq!(rig.real().len(), 2, "nobody has acknowledged that it is not offered any more");
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.kubelet.restart().await;
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn a_stream_that_breaks_is_followed_again() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        for _ in 0..3 {
            let before = rig.kubelet.record().registrations.len();
            rig.kubelet.break_stream(R1);
            rig.kubelet.until("a registration", |k| k.record().registrations.len() > before).await;
            rig.kubelet.until("the devices to be healthy again", |k| k.healthy(R1).len() == 2).await;
        }
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn another_plugin_of_whose_devices_nothing_is_seen_does_not_keep_our_place() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        // What the kubelet shows stays the same; only Allocate would go to the other.
        let shown = rig.kubelet.devices(R1);
        let shown: Vec<(&str, bool)> =
            shown.iter().map(|device| (&*device.id, device.health == HEALTHY)).collect();
        let folder = rig.kubelet.device_plugins();
        let other = Plugin::start(&folder, "other.sock", R1, &shown).await;
        other.register(&folder).await.unwrap();
        rig.kubelet
            .until("ours to be registered after it", |k| {
                let registrations = k.record().registrations;
                let last = registrations.iter().rfind(|request| request.resource_name == R1);
                last.is_some_and(|request| request.endpoint.starts_with("slicegate-"))
            })
            .await;
        as_before(&rig, &pod, start).await;
        other.kill().await;
    });
}

#[test]
fn without_pod_resources_the_condition_says_what_is_missing() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        rig.kubelet.stop().await;
        std::fs::remove_file(rig.kubelet.pod_resources()).unwrap();
        rig.kubelet.faults().no_pod_resources.store(true, Ordering::SeqCst);
        rig.kubelet.restart().await;
        complains(&rig, "the kubelet does not serve PodResources on").await;
        let folder = rig.kubelet.pod_resources().parent().unwrap().to_owned();
        let other = Plugin::start(&folder, "kubelet.sock", R1, &[]).await;
        complains(&rig, "the kubelet refuses PodResources GetAllocatableResources").await;
        other.kill().await;
        rig.kubelet.faults().no_pod_resources.store(false, Ordering::SeqCst);
        rig.kubelet.restart().await;
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn pod_resources_that_hangs_is_told_and_waited_for() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        rig.kubelet.faults().list.hold();
        complains(&rig, "the kubelet does not answer PodResources List within 2 s").await;
        rig.kubelet.faults().list.release();
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn others_who_use_up_the_kubelets_answers_are_told_of() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        rig.kubelet.faults().exhaust(u32::MAX);
        complains(&rig, "answers no more than 100 PodResources requests a second").await;
        rig.kubelet.faults().exhaust(0);
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn a_corrupt_checkpoint_is_told_of_and_frees_nothing() {
    on_node(async |mut rig: Rig| {
        let (pod, start) = in_use(&mut rig).await;
        // The agent makes the kubelet write it anew; not before it is told of.
        rig.kubelet.faults().updates.hold();
        std::fs::write(rig.kubelet.device_plugins().join(checkpoint::FILE), "{\"Data\":").unwrap();
        complains(&rig, "kubelet_internal_checkpoint is corrupt").await;
        assert_eq!((rig.state(start), rig.bindings().len()), (Some(InUse), 1));
        rig.kubelet.faults().updates.release();
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn a_kubelet_that_lists_pods_that_have_ended_frees_their_slices_all_the_same() {
    on_node(async |mut rig: Rig| {
        rig.kubelet.faults().lists_ended_pods.store(true, Ordering::SeqCst);
        let (pod, start) = in_use(&mut rig).await;
        let (other, at) = rig.run("two").await;
        rig.kubelet.end(&other);
        rig.until_state(&[at], Idle).await;
        as_before(&rig, &pod, start).await;
    });
}

#[test]
fn a_kubelet_that_comes_after_the_agent_is_waited_for() {
    on_node(async |mut rig: Rig| {
        rig.kubelet.stop().await;
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        complains(&rig, "the kubelet does not serve PodResources on").await;
        rig.until("it to be made all the same", |rig| rig.slice(2).is_some_and(|slice| slice.uuid.is_some()))
            .await;
        assert_eq!(rig.api.resource(R1), (0, 0));
        rig.kubelet.restart().await;
        rig.until_state(&[2], Idle).await;
        assert!(rig.kubelet.admit(&pod("one")).await.is_ok());
        rig.check();
    });
}
