//! The node journal: which GPU instances are ours.
//!
//! An intent is on disk before NVML is asked to make an instance, so that after a crash at any point an instance is either
//! known as ours or was never made. Whatever NVML lists beyond it is foreign. Instances do not survive a reboot; nor do
//! entries.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;

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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    gpu: String,
    profile: String,
    start: u8,
    size: u8,
    /// NVML's GPU instance id; none while the instance is only intended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gpu_instance_id: Option<u32>,
}

impl Entry {
    fn is(&self, gpu: &GpuUuid, slice: &Slice) -> bool {
        self.gpu == gpu.as_str()
            && self.profile == slice.profile.as_str()
            && self.start == slice.start
            && self.size == slice.size
    }
}

const VERSION: u32 = 1;

/// The journal of this node and boot.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    content: Content,
    /// What was wrong with the file at start, for people; its entries are lost.
    pub damage: Option<String>,
}

impl Journal {
    /// Opens the journal in `folder`. Entries of another boot are dropped. A file that cannot be read is put aside: its
    /// instances count as foreign from now on.
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
                "The node journal could not be read ({reason}) and was put aside as {}; the MIG instances that exist count \
                 as foreign. Destroy them with nvidia-smi mig -dci and -dgi to get their room back.",
                aside.display()
            ));
        }
        let content = content.filter(|content| content.boot_id == boot_id).unwrap_or_else(|| Content {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            instances: Vec::new(),
        });
        let journal = Self { path: path.clone(), content, damage };
        journal.write(true)?;
        Ok(journal)
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
            self.content.instances.push(Entry {
                gpu: gpu.to_string(),
                profile: slice.profile.to_string(),
                start: slice.start,
                size: slice.size,
                gpu_instance_id: None,
            });
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
            let slice = entry.profile.parse().ok().map(|profile| Slice {
                start: entry.start,
                size: entry.size,
                profile,
            });
            entry.gpu != gpu.as_str() || slice.is_some_and(|slice| exists(&slice))
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
