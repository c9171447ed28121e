use std::fs;

use crate::repository;

#[test]
fn the_crds_are_those_of_the_types() {
    for (name, wanted) in slicegate::api::crds::files().unwrap() {
        let path = repository("crds").join(name);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "crds/{name} is stale: run `make generate` and commit the result");
    }
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
