use slicegate::api::mig_node::SliceState::{Draining, Idle, InUse};

use super::rig::{P1, P2, R1, pod, starts};
use super::{Rig, on_node};

#[test]
fn a_slice_is_destroyed_only_once_the_kubelet_counts_it_no_more() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        rig.kubelet.faults().updates.hold();
        rig.want(&[(P1, 5)]);
        rig.until_state(&[2], Draining).await;
        rig.kubelet.faults().updates.holds(1).await;
        rig.looks(5).await;
        assert!(rig.real_at(2).is_some(), "the kubelet still counts it");
        assert_eq!(rig.kubelet.healthy(R1).len(), 2);
        rig.kubelet.faults().updates.release();
        rig.until_gone(2).await;
        assert!(rig.real_at(2).is_none());
        assert_eq!((rig.kubelet.healthy(R1).len(), rig.api.resource(R1)), (1, (7, 1)));
        assert_eq!(rig.kubelet.devices(R1).len(), 7);
        rig.check();
    });
}

#[test]
fn an_allocate_in_flight_gets_the_slice_that_stays() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        rig.kubelet.faults().allocate.hold();
        // The first device, which in the kubelet's eyes is as good as the other.
        let admission = rig.kubelet.begin(&pod("one"));
        rig.kubelet.faults().allocate.holds(1).await;
        rig.want(&[(P1, 5)]);
        rig.until_gone(2).await;
        rig.kubelet.faults().allocate.release();
        let given = admission.await.unwrap().unwrap();
        assert_eq!(starts(&given), [5]);
        rig.until_state(&[5], InUse).await;
        rig.check();
    });
}

#[test]
fn an_allocate_in_flight_for_the_last_slice_is_refused_once_that_is_going_and_nothing_is_lost() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        rig.kubelet.faults().allocate.hold();
        let admission = rig.kubelet.begin(&pod("one"));
        rig.kubelet.faults().allocate.holds(1).await;
        rig.want(&[]);
        rig.until_gone(2).await;
        rig.kubelet.faults().allocate.release();
        let error = admission.await.unwrap().unwrap_err();
        assert!(error.contains("no slice of 1g.10gb is free on this node"), "{error}");
        rig.want(&[(P2, 2)]);
        rig.until_state(&[2], Idle).await;
        rig.check();
    });
}

#[test]
fn a_pod_that_was_given_a_slice_before_it_was_unwanted_keeps_it_though_nobody_had_seen_it() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        // What the kubelet says of the pod is held back: only the agent's own answer speaks for it.
        rig.kubelet.faults().list.hold();
        let (pod, _) = rig.run("one").await;
        let uuid = rig.uuid_at(2);
        rig.want(&[]);
        rig.until("the slice to be kept", |rig| {
            rig.slice(2).is_some_and(|slice| {
                slice.state == InUse
                    && slice.message.as_deref() == Some("to be destroyed once its pod lets go of it")
            })
        })
        .await;
        rig.kubelet.faults().list.release();
        rig.until("the pod to be named", |rig| rig.slice(2).unwrap().pod.as_deref() == Some("team/one"))
            .await;
        rig.looks(3).await;
        assert_eq!(rig.uuid_at(2), uuid);
        assert_eq!(
            rig.kubelet.healthy(R1).len(),
            1,
            "what a pod has stays healthy: its containers may start again"
        );
        assert_eq!(rig.kubelet.admit(&pod).await.map(|given| starts(&given)), Ok(vec![2]));
        rig.kubelet.end(&pod);
        rig.until_gone(2).await;
        assert_eq!((rig.real(), rig.api.resource(R1)), (vec![], (7, 0)));
        rig.check();
    });
}

#[test]
fn a_slice_that_is_wanted_again_while_it_drains_is_offered_again() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        let uuid = rig.uuid_at(2);
        rig.kubelet.faults().updates.hold();
        rig.want(&[]);
        rig.until_state(&[2], Draining).await;
        rig.kubelet.faults().updates.holds(1).await;
        rig.want(&[(P1, 2)]);
        rig.until("it not to drain any more", |rig| rig.state(2) != Some(Draining)).await;
        rig.kubelet.faults().updates.release();
        rig.until_state(&[2], Idle).await;
        assert_eq!(rig.uuid_at(2), uuid, "it was made anew for nothing");
        assert_eq!(rig.api.resource(R1), (7, 1));
        rig.check();
    });
}

#[test]
fn slices_give_way_to_others_and_what_is_in_use_is_waited_for() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 0), (P1, 1)]);
        rig.until_state(&[0, 1], Idle).await;
        let (pod, start) = rig.run("one").await;
        rig.want(&[(P2, 0)]);
        let other = 1 - start;
        rig.until("the free one to go", |rig| rig.real_at(u32::from(other)).is_none()).await;
        rig.looks(3).await;
        assert_eq!(rig.real().len(), 1);
        rig.kubelet.end(&pod);
        rig.until("the other to be made", |rig| {
            rig.slice(0).is_some_and(|slice| slice.profile == P2 && slice.state == Idle)
        })
        .await;
        rig.check();
    });
}
