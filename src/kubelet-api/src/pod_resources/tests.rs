use prost::Message;

use super::*;

#[test]
fn what_every_pod_holds_is_on_the_wire_as_the_kubelet_writes_it() {
    let message = ListPodResourcesResponse {
        pod_resources: vec![PodResources {
            name: "p".into(),
            namespace: "n".into(),
            containers: vec![ContainerResources {
                name: "c".into(),
                devices: vec![ContainerDevices {
                    resource_name: "a.b/c".into(),
                    device_ids: vec!["0".into()],
                    topology: Some(TopologyInfo { nodes: vec![NumaNode { id: 1 }] }),
                }],
                cpu_ids: vec![2, 3],
                memory: vec![ContainerMemory { memory_type: "memory".into(), size: 300, topology: None }],
                dynamic_resources: vec![DynamicResource {
                    claim_name: "q".into(),
                    claim_namespace: "n".into(),
                    claim_resources: vec![ClaimResource {
                        cdi_devices: vec![CdiDevice { name: "v/c=d".into() }],
                        driver_name: "dr".into(),
                        pool_name: "po".into(),
                        device_name: "de".into(),
                        share_id: Some(String::new()),
                    }],
                }],
            }],
        }],
    };
    let claim = b"\x0a\x07\x0a\x05v/c=d\x12\x02dr\x1a\x02po\x22\x02de\x2a\x00";
    let dynamic = [b"\x12\x01q\x1a\x01n\x22\x17".as_slice(), claim].concat();
    let container = [
        b"\x0a\x01c\x12\x10\x0a\x05a.b/c\x12\x010\x1a\x04\x0a\x02\x08\x01".as_slice(),
        b"\x1a\x02\x02\x03",
        b"\x22\x0b\x0a\x06memory\x10\xac\x02",
        b"\x2a\x1f",
        &dynamic,
    ]
    .concat();
    let pod = [b"\x0a\x01p\x12\x01n\x1a\x47".as_slice(), &container].concat();
    let wire = [b"\x0a\x4f".as_slice(), &pod].concat();
    assert_eq!(message.encode_to_vec(), wire);
    assert_eq!(ListPodResourcesResponse::decode(wire.as_slice()).unwrap(), message);
}

#[test]
fn a_field_that_is_newer_than_this_crate_is_passed_over() {
    let wire = b"\x0a\x05\x0a\x01p\x12\x00\x7a\x03new";
    let read = ListPodResourcesResponse::decode(wire.as_slice()).unwrap();
    assert_eq!(read.pod_resources.len(), 1);
    assert_eq!(read.pod_resources[0].name, "p");
}

#[test]
fn what_the_node_has_to_give_is_on_the_wire_as_the_kubelet_writes_it() {
    let message = AllocatableResourcesResponse {
        devices: vec![ContainerDevices {
            resource_name: "a.b/c".into(),
            device_ids: vec!["0".into()],
            topology: None,
        }],
        cpu_ids: vec![0, 1],
        memory: Vec::new(),
    };
    let wire = b"\x0a\x0a\x0a\x05a.b/c\x12\x010\x12\x02\x00\x01";
    assert_eq!(message.encode_to_vec(), wire);
    assert_eq!(AllocatableResourcesResponse::decode(wire.as_slice()).unwrap(), message);
}
