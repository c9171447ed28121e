use std::sync::{Arc, Mutex};

use slicegate::agent::cdi::PREFIX;
use slicegate::api::mig_node::SliceState::{Creating, Idle};

use super::rig::{P1, R1};
use super::{Rig, on_node};
use crate::api_server::{Kind, resource};

/// The CDI files of slices.
fn files(rig: &Rig) -> Vec<String> {
    let names =
        std::fs::read_dir(rig.cdi()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(PREFIX) && !name.contains("driver")).collect()
}

#[test]
fn a_slice_is_made_then_described_then_acknowledged_then_shown_then_idle() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.until("capacity without a slice", |rig| rig.api.resource(R1) == (7, 0)).await;
        let steps = Arc::new(Mutex::new(Vec::new()));
        let noted = steps.clone();
        rig.api.on_write(move |write| {
            let step = match write.kind {
                Kind::Node => format!("the node shows {}", resource(&write.object, R1).1),
                Kind::MigNode => format!("slice {}", write.object["status"]["slices"][0]["state"]),
            };
            noted.lock().unwrap().push(step);
        });
        rig.kubelet.faults().updates.hold();
        rig.want(&[(P1, 2)]);
        rig.kubelet.faults().updates.holds(1).await;
        assert!(rig.real_at(2).is_some(), "the kubelet is told of a slice that was not made");
        assert_eq!(files(&rig), [format!("slicegate.dev-mig-{}_1g.10gb_2.json", rig.gpus[0])]);
        // The list is on its way: nothing may be promised yet.
        rig.looks(5).await;
        rig.until_state(&[2], Creating).await;
        assert_eq!(rig.api.resource(R1).1, 0);
        assert!(rig.kubelet.healthy(R1).is_empty());

        rig.kubelet.faults().allocatable.hold();
        rig.kubelet.faults().updates.release();
        rig.kubelet.until("a healthy device", |k| k.healthy(R1).len() == 1).await;
        rig.kubelet.faults().allocatable.holds(1).await;
        assert_eq!((rig.state(2), rig.api.resource(R1).1), (Some(Creating), 0), "not acknowledged yet");
        rig.kubelet.faults().allocatable.release();
        rig.until_state(&[2], Idle).await;
        assert_eq!(rig.api.resource(R1), (7, 1));
        let mut steps = steps.lock().unwrap().clone();
        steps.dedup();
        assert_eq!(steps, ["slice \"Creating\"", "the node shows 1", "slice \"Idle\""]);
        rig.check();
    });
}

#[test]
fn what_is_wanted_at_once_is_offered_in_one_list_and_a_node_without_wishes_shows_zero() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.until("capacity without a slice", |rig| rig.api.resource(R1) == (7, 0)).await;
        rig.want(&[(P1, 0), (P1, 1), (P1, 2), (P1, 3), (P1, 4), (P1, 5), (P1, 6)]);
        rig.until_state(&[0, 1, 2, 3, 4, 5, 6], Idle).await;
        assert_eq!(rig.api.resource(R1), (7, 7));
        assert_eq!(rig.kubelet.healthy(R1).len(), 7);
        rig.check();
    });
}

#[test]
fn an_api_server_that_fails_delays_and_loses_nothing() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.api.fail(5);
        rig.until_state(&[2], Idle).await;
        assert_eq!(rig.api.resource(R1).1, 1);
        let writes = rig.api.writes().len();
        rig.looks(2).await;
        assert_eq!(rig.api.writes().len(), writes);
        rig.check();
    });
}

#[test]
fn a_node_that_registers_anew_shows_its_slices_again_and_a_mignode_that_was_deleted_is_made_again() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        rig.api.remove(Kind::Node);
        rig.api.make_node();
        rig.until("the node to show the slice again", |rig| rig.api.resource(R1) == (7, 1)).await;
        let uuid = rig.uuid_at(2);
        rig.api.remove(Kind::MigNode);
        rig.until("the slice that nobody wants any more to go", |rig| {
            rig.api.status().observed_generation.is_some() && rig.slice(2).is_none()
        })
        .await;
        assert!(rig.real().is_empty());
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        assert_ne!(rig.uuid_at(2), uuid);
        rig.check();
    });
}
