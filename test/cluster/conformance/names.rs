//! What the model calls by a number of its own and the API server by another.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use slicegate_core::sim::api_server::Object;

use super::SEQUENCE;
use super::kinds::Mirrored;

/// Versions and uids of one sequence, as far as they have been seen on both sides. Versions of the API server have gaps, since
/// other sequences take some; what must agree is their order.
#[derive(Clone, Default)]
pub struct Names {
    versions: BTreeMap<u64, u64>,
    /// Lists: all up to a version of the model had happened, and nothing after it.
    lists: Vec<(u64, u64)>,
    uids: BTreeMap<Arc<str>, String>,
}

impl Names {
    /// The API server's version of an object that has been seen.
    pub fn version(&self, model: u64) -> Result<u64> {
        self.versions.get(&model).copied().with_context(|| format!("version {model} was never seen"))
    }

    /// The API server's uid; one that nobody has is the same on both sides.
    pub fn uid(&self, model: &Arc<str>) -> String {
        self.uids.get(model).cloned().unwrap_or_else(|| model.to_string())
    }

    /// The versions of the model as of which something may be that the API server says is as of `version`: more than one where
    /// what happened in between has not been seen there.
    pub fn as_of(&self, version: u64, current: u64) -> RangeInclusive<u64> {
        let known = || self.versions.iter();
        let from = known().rev().find(|(_, real)| **real <= version).map_or(0, |(model, _)| *model);
        let to = known().find(|(_, real)| **real > version).map_or(current, |(model, _)| *model - 1);
        from..=to
    }

    /// Takes down that a list as of everything up to a version of the model was as of `real`.
    pub fn listed(&mut self, model: u64, real: u64) -> Result<()> {
        self.lists.push((model, real));
        self.versions.iter().try_for_each(|(seen, seen_real)| in_order((*seen, *seen_real), (model, real)))
    }

    fn versioned(&mut self, model: u64, real: u64) -> Result<()> {
        match self.versions.insert(model, real) {
            Some(before) if before != real => bail!("version {model} was {before} and is now {real}"),
            Some(_) => return Ok(()),
            None => {}
        }
        let before = self.versions.range(..model).next_back();
        let after = self.versions.range(model + 1..).next();
        let orderly = before.is_none_or(|(_, other)| *other < real) && after.is_none_or(|(_, o)| *o > real);
        ensure!(orderly, "version {real} is not in order: {before:?}, {model} is {real}, {after:?}");
        self.lists.iter().try_for_each(|list| in_order((model, real), *list))
    }

    fn identified(&mut self, model: &Arc<str>, real: &str) -> Result<()> {
        let known = self.uids.entry(model.clone()).or_insert_with(|| real.to_owned());
        ensure!(known == real, "uid of {model} was {known} and is now {real}");
        let same = self.uids.values().filter(|uid| *uid == real).count();
        ensure!(same == 1, "two objects have the uid {real}");
        Ok(())
    }

    /// Compares an object of both sides, and learns how the API server calls it.
    pub fn same<K: Mirrored>(&mut self, model: &Object<K>, real: &Value) -> Result<()> {
        let meta = &real["metadata"];
        let seen = described::<K>(real);
        let expected = describe(model);
        ensure!(seen == expected, "not the same:\n      model       {expected}\n      API server  {seen}");
        self.versioned(model.meta.version, version_of(real)?)?;
        self.identified(&model.meta.uid, meta["uid"].as_str().context("uid")?)
    }
}

fn in_order(object: (u64, u64), list: (u64, u64)) -> Result<()> {
    let (before, before_real) = (object.0 <= list.0, object.1 <= list.1);
    let told = if before { "before" } else { "after" };
    ensure!(before == before_real, "a change {object:?} {told} a list {list:?} in the model only");
    Ok(())
}

/// `metadata.resourceVersion`.
pub fn version_of(real: &Value) -> Result<u64> {
    let text = real["metadata"]["resourceVersion"].as_str().context("resourceVersion")?;
    text.parse().with_context(|| format!("resourceVersion {text}"))
}

/// All that is compared but versions and uid, for people to read.
pub fn describe<K: Mirrored>(object: &Object<K>) -> String {
    let meta = &object.meta;
    let deleting = match (meta.deleting, meta.grace_is_over) {
        (false, _) => "",
        (true, false) => ", deleting with grace",
        (true, true) => ", deleting",
    };
    format!(
        "{} generation {}{deleting}, labels {:?}, annotations {:?}, finalizers {:?}, spec {:?}, status {:?}",
        meta.key.name,
        meta.generation,
        meta.marks.labels,
        meta.marks.annotations,
        meta.marks.finalizers,
        object.spec,
        object.status,
    )
}

/// The same of an object of the API server.
pub fn described<K: Mirrored>(real: &Value) -> String {
    let meta = &real["metadata"];
    let deleting = match (&meta["deletionTimestamp"], &meta["deletionGracePeriodSeconds"]) {
        (Value::Null, _) => "",
        (_, grace) if *grace == json!(0) => ", deleting",
        _ => ", deleting with grace",
    };
    let pairs = |map: &Value| -> BTreeMap<String, String> {
        let map = map.as_object().into_iter().flatten().filter(|(key, _)| *key != SEQUENCE);
        map.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    };
    let finalizers: std::collections::BTreeSet<_> =
        meta["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    format!(
        "{} generation {}{deleting}, labels {:?}, annotations {:?}, finalizers {:?}, spec {:?}, status {:?}",
        meta["name"].as_str().unwrap_or_default(),
        meta["generation"].as_i64().unwrap_or_default(),
        pairs(&meta["labels"]),
        pairs(&meta["annotations"]),
        finalizers,
        K::spec_of(real),
        K::status_of(real),
    )
}
