use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::repository;

#[test]
fn the_crds_are_those_of_the_types() {
    for (name, wanted) in slicegate::api::crds::files().unwrap() {
        let path = repository("crds").join(name);
        if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "crds/{name} is stale: run UPDATE=1 cargo test --test component crds (`make generate`) and commit the result"
        );
    }
}

#[test]
fn no_crd_is_left_of_a_type_that_is_gone() {
    let wanted: BTreeSet<String> =
        slicegate::api::crds::files().unwrap().into_iter().map(|(name, _)| name.to_owned()).collect();
    let found: BTreeSet<String> = fs::read_dir(repository("crds"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == "yaml"))
        .filter(|name| name != "kustomization.yaml")
        .collect();
    assert_eq!(found, wanted);
}

#[test]
fn every_field_explains_itself() {
    for (name, yaml) in slicegate::api::crds::files().unwrap() {
        let crd: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        for part in ["spec", "status"] {
            if let Some(fields) = schema[part].as_object() {
                undocumented(&format!("{name} {part}"), &serde_json::Value::Object(fields.clone()));
            }
        }
    }
}

fn undocumented(path: &str, schema: &serde_json::Value) {
    for (field, inner) in schema["properties"].as_object().into_iter().flatten() {
        let here = format!("{path}.{field}");
        assert!(inner["description"].is_string(), "{here} has no description for kubectl explain");
        undocumented(&here, inner);
        undocumented(&here, &inner["items"]);
    }
}
