use prost::Message;

use super::*;

/// The wire bytes of a message, and the message again from them.
fn is_on_the_wire<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, wire: &[u8]) {
    assert_eq!(message.encode_to_vec(), wire);
    assert_eq!(&M::decode(wire).unwrap(), message);
}

#[test]
fn a_device_is_on_the_wire_as_the_kubelet_reads_it() {
    is_on_the_wire(
        &Device {
            id: "1g.10gb/0".into(),
            health: HEALTHY.into(),
            topology: Some(TopologyInfo { nodes: vec![NumaNode { id: 0 }, NumaNode { id: 1 }] }),
        },
        b"\x0a\x091g.10gb/0\x12\x07Healthy\x1a\x06\x0a\x00\x0a\x02\x08\x01",
    );
    is_on_the_wire(
        &ListAndWatchResponse {
            devices: vec![Device { id: "a".into(), health: UNHEALTHY.into(), topology: None }],
        },
        b"\x0a\x0e\x0a\x01a\x12\x09Unhealthy",
    );
}

#[test]
fn a_registration_is_on_the_wire_as_the_kubelet_reads_it() {
    is_on_the_wire(
        &RegisterRequest {
            version: VERSION.into(),
            endpoint: "p.sock".into(),
            resource_name: "a.b/c".into(),
            options: Some(DevicePluginOptions {
                pre_start_required: false,
                get_preferred_allocation_available: true,
            }),
        },
        b"\x0a\x07v1beta1\x12\x06p.sock\x1a\x05a.b/c\x22\x02\x10\x01",
    );
}

#[test]
fn what_a_container_is_given_is_on_the_wire_as_the_kubelet_reads_it() {
    is_on_the_wire(
        &ContainerAllocateResponse {
            envs: BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]),
            mounts: vec![Mount { container_path: "/c".into(), host_path: "/h".into(), read_only: true }],
            devices: vec![DeviceSpec {
                container_path: "/d".into(),
                host_path: "/e".into(),
                permissions: "rw".into(),
            }],
            annotations: BTreeMap::from([("k".into(), "v".into())]),
            cdi_devices: vec![CdiDevice { name: "v/c=d".into() }],
        },
        b"\x0a\x06\x0a\x01A\x12\x011\x0a\x06\x0a\x01B\x12\x012\
          \x12\x0a\x0a\x02/c\x12\x02/h\x18\x01\
          \x1a\x0c\x0a\x02/d\x12\x02/e\x1a\x02rw\
          \x22\x06\x0a\x01k\x12\x01v\
          \x2a\x07\x0a\x05v/c=d",
    );
}

#[test]
fn the_choice_among_devices_is_on_the_wire_as_the_kubelet_writes_it() {
    is_on_the_wire(
        &PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: vec!["a".into(), "b".into()],
                must_include_device_ids: vec!["b".into()],
                allocation_size: 2,
            }],
        },
        b"\x0a\x0b\x0a\x01a\x0a\x01b\x12\x01b\x18\x02",
    );
    is_on_the_wire(
        &AllocateRequest {
            container_requests: vec![ContainerAllocateRequest { device_ids: vec!["a".into(), "b".into()] }],
        },
        b"\x0a\x06\x0a\x01a\x0a\x01b",
    );
}
