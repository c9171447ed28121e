//! The node journal: which GPU instances are ours, and which slice each of the kubelet's devices stands for.
//!
//! An intent is on disk before NVML is asked to make an instance, so that after a crash at any point an instance is either
//! known as ours or was never made. Whatever NVML lists beyond it is foreign. A binding is on disk before the kubelet is
//! answered. Instances do not survive a reboot, nor do their entries; bindings do, as the kubelet's checkpoint does: a pod
//! that outlives the reboot finds its slice at its place again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use slicegate_core::geometry::{Place, Slice};
use slicegate_core::id::GpuUuid;
use slicegate_core::tokens::Token;

/// Why the journal cannot be kept. Without it nothing may be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the node journal {}: {source}; the folder must be writable and survive the agent (a hostPath volume)", .path.display())]
pub struct JournalError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    version: u32,
    #[serde(rename = "bootID")]
    boot_id: String,
    instances: Vec<Entry>,
    /// Whether more may be ours, and more be bound, than is noted here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    incomplete: bool,
    /// By device id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    bindings: BTreeMap<String, BindingEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingEntry {
    #[serde(flatten)]
    spot: Spot,
    uuid: String,
}

/// The slice that a device stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Where it is.
    pub place: Place,
    /// The UUID of its MIG device when the kubelet was answered. Another one now: it was made anew under its pod.
    pub uuid: String,
}

/// A place as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spot {
    gpu: String,
    profile: String,
    start: u8,
    size: u8,
}

impl Spot {
    fn new(gpu: &GpuUuid, slice: &Slice) -> Self {
        let (profile, start, size) = (slice.profile.to_string(), slice.start, slice.size);
        Self { gpu: gpu.to_string(), profile, start, size }
    }

    fn place(&self) -> Option<Place> {
        let slice = Slice { start: self.start, size: self.size, profile: self.profile.parse().ok()? };
        Some(Place { gpu: self.gpu.as_str().into(), slice })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(flatten)]
    spot: Spot,
    /// NVML's GPU instance id; none while the instance is only intended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gpu_instance_id: Option<u32>,
    /// Whether a pod has had it since it was made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    used: bool,
}

impl Entry {
    fn is(&self, gpu: &GpuUuid, slice: &Slice) -> bool {
        self.spot == Spot::new(gpu, slice)
    }
}

const VERSION: u32 = 1;

/// The journal of this node and boot.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    content: Content,
    /// Whether there was no journal that could be read, and since then nobody has said [`Journal::complete`]: whose the
    /// instances are, and who has them, must be found out otherwise.
    pub is_new: bool,
    /// What was wrong with the file at start, for people; its entries are lost.
    pub damage: Option<String>,
}

impl Journal {
    /// Opens the journal in `folder`. Entries of another boot are dropped. A file that cannot be read is put aside:
    /// whose the instances are must be found out otherwise.
    pub fn open(folder: &Path, boot_id: &str) -> Result<Self, JournalError> {
        let path = folder.join("journal.json");
        let fail = |source| JournalError { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(fail)?;
        let mut damage = None;
        let content = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(error)),
            Ok(bytes) => match serde_json::from_slice::<Content>(&bytes) {
                Ok(content) if content.version == VERSION => Some(content),
                Ok(content) => {
                    damage = Some(format!("its version is {}, not {VERSION}", content.version));
                    None
                }
                Err(error) => {
                    damage = Some(error.to_string());
                    None
                }
            },
        };
        if let Some(reason) = damage.take() {
            let aside = aside(&path);
            fs::rename(&path, &aside).map_err(fail)?;
            damage = Some(format!(
                "The node journal could not be read ({reason}) and was put aside as {}; MIG instances that the MIGNode did not \
                 show as Slicegate's count as foreign. Destroy those that are left over with nvidia-smi mig -dci and -dgi to \
                 get their room back.",
                aside.display()
            ));
        }
        let is_new = content.as_ref().is_none_or(|content| content.incomplete);
        let mut content = content.unwrap_or_default();
        content.incomplete = is_new;
        if content.boot_id != boot_id {
            content.instances.clear();
        }
        content.version = VERSION;
        boot_id.clone_into(&mut content.boot_id);
        let journal = Self { path: path.clone(), content, is_new, damage };
        journal.write(true)?;
        Ok(journal)
    }

    /// Notes that everything has been found out. Durable when it returns.
    pub fn complete(&mut self) -> Result<(), JournalError> {
        self.content.incomplete = false;
        let written = self.write(true);
        (self.is_new, self.content.incomplete) = (written.is_err(), written.is_err());
        written
    }

    /// Whether an instance that NVML lists is ours.
    pub fn is_ours(&self, gpu: &GpuUuid, slice: &Slice, id: u32) -> bool {
        self.content
            .instances
            .iter()
            .any(|entry| entry.is(gpu, slice) && entry.gpu_instance_id.is_none_or(|known| known == id))
    }

    /// Notes that instances are about to be made. Durable when it returns.
    pub fn intend<'a>(
        &mut self,
        intents: impl Iterator<Item = (&'a GpuUuid, &'a Slice)>,
    ) -> Result<(), JournalError> {
        let mut intents = intents.peekable();
        if intents.peek().is_none() {
            return Ok(());
        }
        let before = self.content.instances.clone();
        for (gpu, slice) in intents {
            self.content.instances.retain(|entry| !entry.is(gpu, slice));
            let spot = Spot::new(gpu, slice);
            self.content.instances.push(Entry { spot, gpu_instance_id: None, used: false });
        }
        // An intent that is not on disk is none: nothing will be made, and what somebody else makes there is not ours.
        let written = self.write(true);
        if written.is_err() {
            self.content.instances = before;
        }
        written
    }

    /// Notes the id of an instance that has been made.
    pub fn made(&mut self, gpu: &GpuUuid, slice: &Slice, id: u32) -> Result<(), JournalError> {
        for entry in self.content.instances.iter_mut().filter(|entry| entry.is(gpu, slice)) {
            entry.gpu_instance_id = Some(id);
        }
        self.write(false)
    }

    /// Takes up an instance that is known to be ours from elsewhere. It may have been used.
    pub fn adopt(&mut self, gpu: &GpuUuid, slice: &Slice, id: u32) -> Result<(), JournalError> {
        self.content.instances.retain(|entry| !entry.is(gpu, slice));
        let spot = Spot::new(gpu, slice);
        self.content.instances.push(Entry { spot, gpu_instance_id: Some(id), used: true });
        self.write(true)
    }

    /// Whether a pod has had the slice since it was made.
    pub fn is_used(&self, gpu: &GpuUuid, slice: &Slice) -> bool {
        self.content.instances.iter().any(|entry| entry.used && entry.is(gpu, slice))
    }

    /// Notes that pods have these slices.
    pub fn used<'a>(&mut self, places: impl Iterator<Item = &'a Place>) -> Result<(), JournalError> {
        if self.mark_used(places) { self.write(false) } else { Ok(()) }
    }

    fn mark_used<'a>(&mut self, places: impl Iterator<Item = &'a Place>) -> bool {
        let mut changed = false;
        for place in places {
            for entry in self.content.instances.iter_mut().filter(|e| e.is(&place.gpu, &place.slice)) {
                changed |= !std::mem::replace(&mut entry.used, true);
            }
        }
        changed
    }

    /// The bindings that were noted.
    pub fn bindings(&self) -> BTreeMap<Token, Binding> {
        let read = |(token, entry): (&String, &BindingEntry)| {
            let binding = Binding { place: entry.spot.place()?, uuid: entry.uuid.clone() };
            Some((token.parse().ok()?, binding))
        };
        self.content.bindings.iter().filter_map(read).collect()
    }

    /// Notes the bindings. `durable`: they are on disk when it returns, or it fails and notes nothing.
    pub fn bind(&mut self, bindings: &BTreeMap<Token, Binding>, durable: bool) -> Result<(), JournalError> {
        let entry = |binding: &Binding| BindingEntry {
            spot: Spot::new(&binding.place.gpu, &binding.place.slice),
            uuid: binding.uuid.clone(),
        };
        let noted = bindings.iter().map(|(token, binding)| (token.to_string(), entry(binding))).collect();
        let before = std::mem::replace(&mut self.content.bindings, noted);
        let instances = self.content.instances.clone();
        let used = self.mark_used(bindings.values().map(|binding| &binding.place));
        if !used && before == self.content.bindings {
            return Ok(());
        }
        let written = self.write(durable);
        if written.is_err() && durable {
            (self.content.bindings, self.content.instances) = (before, instances);
        }
        written
    }

    /// Strikes out an instance that is gone, or was never made.
    pub fn gone(&mut self, gpu: &GpuUuid, slice: &Slice) -> Result<(), JournalError> {
        let before = self.content.instances.len();
        self.content.instances.retain(|entry| !entry.is(gpu, slice));
        if self.content.instances.len() == before { Ok(()) } else { self.write(false) }
    }

    /// Strikes out the entries of a GPU for which `exists` knows no instance: after a full look at it.
    pub fn sweep(&mut self, gpu: &GpuUuid, exists: impl Fn(&Slice) -> bool) -> Result<(), JournalError> {
        let before = self.content.instances.len();
        self.content.instances.retain(|entry| {
            entry.spot.gpu != gpu.as_str() || entry.spot.place().is_some_and(|place| exists(&place.slice))
        });
        if self.content.instances.len() == before { Ok(()) } else { self.write(false) }
    }

    /// Replaces the file. Only an intent must be durable at once: without the rest of the journal an instance is still known
    /// as ours by its place, and an entry without an instance is swept.
    fn write(&self, durable: bool) -> Result<(), JournalError> {
        let write = || -> io::Result<()> {
            let temporary = self.path.with_extension("json.new");
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(&self.content)?)?;
            if durable {
                file.sync_all()?;
            }
            fs::rename(&temporary, &self.path)?;
            if durable {
                File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|source| JournalError { path: self.path.clone(), source })
    }
}

/// A name beside `path` that is not taken.
fn aside(path: &Path) -> PathBuf {
    (0..u32::MAX)
        .map(|n| path.with_extension(format!("json.corrupt-{n}")))
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| path.with_extension("json.corrupt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(start: u8) -> Slice {
        Slice { start, size: 1, profile: "1g.10gb".parse().unwrap() }
    }

    #[test]
    fn an_intent_outlives_the_agent_and_becomes_ours() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = GpuUuid::from("GPU-1");
        Journal::open(folder.path(), "boot-1").unwrap().intend([(&gpu, &slice(3))].into_iter()).unwrap();
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        assert!(journal.is_ours(&gpu, &slice(3), 9), "made before the id could be noted");
        assert!(!journal.is_ours(&gpu, &slice(4), 9));
        assert!(!journal.is_ours(&GpuUuid::from("GPU-2"), &slice(3), 9));
        journal.made(&gpu, &slice(3), 9).unwrap();
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        assert!(journal.is_ours(&gpu, &slice(3), 9));
        assert!(!journal.is_ours(&gpu, &slice(3), 10), "somebody else's, at the same place");
        journal.gone(&gpu, &slice(3)).unwrap();
        assert!(!Journal::open(folder.path(), "boot-1").unwrap().is_ours(&gpu, &slice(3), 9));
    }

    #[test]
    fn a_reboot_voids_every_entry() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = GpuUuid::from("GPU-1");
        Journal::open(folder.path(), "boot-1").unwrap().intend([(&gpu, &slice(3))].into_iter()).unwrap();
        assert!(!Journal::open(folder.path(), "boot-2").unwrap().is_ours(&gpu, &slice(3), 9));
    }

    fn one_binding() -> BTreeMap<Token, Binding> {
        let binding = Binding { place: Place::new(&"GPU-1".into(), &slice(3)), uuid: "MIG-1".to_owned() };
        [("1g.10gb/4".parse().unwrap(), binding)].into()
    }

    #[test]
    fn a_journal_is_new_until_everything_has_been_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(folder.path(), "boot-1").unwrap();
        assert!(open().is_new);
        assert!(open().is_new, "the agent died before it had found out who has what");
        let mut journal = open();
        journal.complete().unwrap();
        assert!(!journal.is_new && !open().is_new);
        fs::write(folder.path().join("journal.json"), "{").unwrap();
        assert!(open().is_new);
    }

    #[test]
    fn bindings_outlive_agent_and_reboot() {
        let folder = tempfile::tempdir().unwrap();
        Journal::open(folder.path(), "boot-1").unwrap().bind(&one_binding(), true).unwrap();
        for boot in ["boot-1", "boot-2"] {
            assert_eq!(Journal::open(folder.path(), boot).unwrap().bindings(), one_binding());
        }
    }

    #[test]
    fn a_binding_that_is_not_on_disk_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        journal.bind(&one_binding(), true).unwrap_err();
        assert_eq!(journal.bindings(), [].into());
    }

    #[test]
    fn a_slice_is_used_from_its_first_binding_until_it_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = GpuUuid::from("GPU-1");
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        journal.intend([(&gpu, &slice(3))].into_iter()).unwrap();
        journal.made(&gpu, &slice(3), 9).unwrap();
        assert!(!journal.is_used(&gpu, &slice(3)));
        journal.bind(&one_binding(), true).unwrap();
        journal.bind(&BTreeMap::new(), false).unwrap();
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        assert!(journal.is_used(&gpu, &slice(3)));
        journal.gone(&gpu, &slice(3)).unwrap();
        journal.intend([(&gpu, &slice(3))].into_iter()).unwrap();
        assert!(!journal.is_used(&gpu, &slice(3)));
    }

    #[test]
    fn what_is_adopted_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = GpuUuid::from("GPU-1");
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        assert!(journal.is_new);
        journal.adopt(&gpu, &slice(3), 9).unwrap();
        let journal = Journal::open(folder.path(), "boot-1").unwrap();
        assert!(journal.is_ours(&gpu, &slice(3), 9) && journal.is_used(&gpu, &slice(3)));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_put_aside_with_a_word() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("journal.json"), "{\"version\": 1, \"inst").unwrap();
        let journal = Journal::open(folder.path(), "boot-1").unwrap();
        let damage = journal.damage.unwrap();
        assert!(damage.contains("journal.json.corrupt-0") && damage.contains("foreign"), "{damage}");
        assert!(folder.path().join("journal.json.corrupt-0").exists());
        assert_eq!(Journal::open(folder.path(), "boot-1").unwrap().damage, None);
    }

    #[test]
    fn entries_without_an_instance_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = GpuUuid::from("GPU-1");
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        journal.intend([(&gpu, &slice(1)), (&gpu, &slice(2))].into_iter()).unwrap();
        journal.sweep(&gpu, |s| s.start == 2).unwrap();
        assert!(!journal.is_ours(&gpu, &slice(1), 0));
        assert!(journal.is_ours(&gpu, &slice(2), 0));
    }

    #[test]
    fn an_intent_that_is_not_on_disk_makes_nothing_ours() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = GpuUuid::from("GPU-1");
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        journal.intend([(&gpu, &slice(3))].into_iter()).unwrap_err();
        assert!(!journal.is_ours(&gpu, &slice(3), 9));
    }

    #[test]
    fn no_intent_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "boot-1").unwrap();
        fs::remove_file(folder.path().join("journal.json")).unwrap();
        journal.intend(std::iter::empty()).unwrap();
        assert!(!folder.path().join("journal.json").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Journal::open(&file, "boot-1").unwrap_err().to_string();
        assert!(error.contains("journal.json") && error.contains("writable"), "{error}");
    }
}
