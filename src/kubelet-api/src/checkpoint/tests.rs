use super::*;
use crate::device_plugin::CdiDevice;

/// As a kubelet writes it: one line, null for what is empty, the checksum last.
const WRITTEN: &str = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"5a01","ContainerName":"train","ResourceName":"nvidia.com/mig-1g.10gb","DeviceIDs":{"-1":["1g.10gb/3"]},"AllocResp":"CgYKAUESATEqBwoFdi9jPWQ="},{"PodUID":"5a02","ContainerName":"init","ResourceName":"a.b/c","DeviceIDs":{"1":["y","x"],"0":["x"]},"AllocResp":null}],"RegisteredDevices":{"nvidia.com/mig-1g.10gb":["1g.10gb/0","1g.10gb/3"],"a.b/c":null}},"Checksum":1653203894}"#;

fn folder_with(content: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE), content).unwrap();
    folder
}

#[test]
fn entries_and_the_answers_in_them_are_read() {
    let checkpoint = read(folder_with(WRITTEN).path()).unwrap();
    assert_eq!(checkpoint.entries.len(), 2);
    let train = &checkpoint.entries[0];
    assert_eq!(
        (train.pod_uid.as_str(), train.container.as_str(), train.resource.as_str()),
        ("5a01", "train", "nvidia.com/mig-1g.10gb")
    );
    assert_eq!(train.devices, BTreeMap::from([(NO_NUMA_NODE, vec!["1g.10gb/3".to_owned()])]));
    assert_eq!(train.response.envs, BTreeMap::from([("A".to_owned(), "1".to_owned())]));
    assert_eq!(train.response.cdi_devices, [CdiDevice { name: "v/c=d".into() }]);
    assert_eq!(checkpoint.registered["nvidia.com/mig-1g.10gb"], ["1g.10gb/0", "1g.10gb/3"]);
    assert!(checkpoint.registered["a.b/c"].is_empty());
}

#[test]
fn a_device_that_is_near_to_two_numa_nodes_is_one_device() {
    let checkpoint = read(folder_with(WRITTEN).path()).unwrap();
    assert_eq!(checkpoint.entries[1].device_ids(), ["x", "y"]);
    assert_eq!(checkpoint.entries[1].response, ContainerAllocateResponse::default());
}

#[test]
fn the_checkpoint_of_a_kubelet_that_gave_nothing_has_no_entries() {
    let written = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":0}"#;
    assert_eq!(read(folder_with(written).path()).unwrap(), Checkpoint::default());
}

#[test]
fn where_there_is_no_checkpoint_nothing_was_given() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read(folder.path()).unwrap(), Checkpoint::default());
}

#[test]
fn what_is_not_a_checkpoint_is_an_error_that_names_the_file_and_the_place() {
    let cut = &WRITTEN[..WRITTEN.len() / 2];
    let not_base64 = WRITTEN.replace("CgYK", "*gYK");
    let not_a_message = WRITTEN.replace("CgYKAUESATEqBwoFdi9jPWQ=", "CgY=");
    let no_pods = WRITTEN.replace("\"PodUID\"", "\"PodName\"");
    let no_node = WRITTEN.replace("\"-1\"", "\"near\"");
    for (content, says) in [
        ("", "EOF"),
        ("{}", "Data"),
        (cut, "EOF"),
        (&not_base64, "container train of pod 5a01"),
        (&not_a_message, "container train of pod 5a01"),
        (&no_pods, "PodUID"),
        (&no_node, "number in quotes"),
    ] {
        let folder = folder_with(content);
        let error = read(folder.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::Corrupt { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(FILE) && text.contains(says), "{text}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_not_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    fs::create_dir(&path).unwrap();
    let error = read(folder.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::Read { .. }), "{error}");
}
