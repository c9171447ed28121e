//! What the kubelet was answered: journal and tokens under one lock, for the deciding task and for Allocate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use slicegate_core::geometry::Place;
use slicegate_core::tokens::{Refusal, Token, Tokens};

use crate::agent::journal::{Binding, Journal, JournalError};

/// A slice that is made, as far as a container needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Where it is.
    pub place: Place,
    /// UUID of its MIG device.
    pub uuid: String,
}

/// What is known of a binding beyond what it binds.
#[derive(Clone, Debug)]
pub struct Note {
    /// When it was made, or taken up after a restart.
    pub since: Instant,
    /// Whether the kubelet has been seen to know of it.
    pub confirmed: bool,
    /// Whose it is, as `namespace/name`; the kubelet names no pod in Allocate.
    pub pod: Option<String>,
    /// The UUID that the container was told.
    pub uuid: String,
    /// Since when the kubelet says that it is over; what lives on in the slice is still to be seen.
    pub over: Option<Instant>,
}

impl Note {
    fn new(uuid: String) -> Self {
        Self { since: Instant::now(), confirmed: false, pod: None, uuid, over: None }
    }
}

/// Why an Allocate fails.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// There is nothing to give.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be noted, and so it was not given.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The book.
#[derive(Debug)]
pub struct Book {
    /// The node journal.
    pub journal: Journal,
    /// The tokens.
    pub tokens: Tokens,
    notes: BTreeMap<Token, Note>,
    /// GPU index and MIG device of each slice that pods can have.
    devices: BTreeMap<Place, (u32, String)>,
}

/// The book, shared.
#[derive(Clone, Debug)]
pub struct SharedBook(Arc<Mutex<Book>>);

impl SharedBook {
    /// A book that begins with what the journal says.
    pub fn new(journal: Journal) -> Self {
        let bindings = journal.bindings();
        // The kubelet has had more time to note its answer than the agent has taken to come back.
        let note = |binding: &Binding| Note { confirmed: true, ..Note::new(binding.uuid.clone()) };
        let notes = bindings.iter().map(|(token, binding)| (token.clone(), note(binding))).collect();
        let tokens = Tokens::new(bindings.into_iter().map(|(token, b)| (token, b.place)).collect());
        Self(Arc::new(Mutex::new(Book { journal, tokens, notes, devices: BTreeMap::new() })))
    }

    /// Waits for the book; it is held for as long as the journal takes to be written.
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Sets which slices pods may be given or have, with GPU index and MIG device.
    pub fn open(&mut self, slices: Vec<(Place, u32, String)>) {
        self.tokens.set_open(slices.iter().map(|(place, ..)| place.clone()).collect());
        self.devices = slices.into_iter().map(|(place, index, uuid)| (place, (index, uuid))).collect();
    }

    /// What is known of a binding.
    pub fn note(&self, token: &Token) -> Option<&Note> {
        self.notes.get(token)
    }

    /// Every binding with what is known of it.
    pub fn bindings(&self) -> impl Iterator<Item = (&Token, &Place, &Note)> {
        self.tokens.bound().iter().filter_map(|(t, place)| Some((t, place, self.notes.get(t)?)))
    }

    /// The tokens for which `change` is to be made in what is known of them.
    pub fn amend(&mut self, mut change: impl FnMut(&Token, &mut Note)) {
        self.notes.iter_mut().for_each(|(token, note)| change(token, note));
    }

    /// Which of these tokens stand for a slice already, with the index of its GPU: what an earlier pod left running there
    /// must be looked for.
    pub fn bound_before(&self, tokens: &[Token]) -> Vec<(Place, u32)> {
        let place = |token| self.tokens.place(token);
        let known = |place: &Place| Some((place.clone(), self.devices.get(place)?.0));
        tokens.iter().filter_map(place).filter_map(known).collect()
    }

    /// Gives a slice for each token and notes it, or does nothing. `taken`: where something of an earlier pod lives on.
    pub fn allocate(
        &mut self,
        tokens: &[Token],
        taken: &BTreeSet<Place>,
    ) -> Result<Vec<Granted>, AllocateError> {
        let (tokens_before, notes_before) = (self.tokens.clone(), self.notes.clone());
        let places = self.tokens.allocate(tokens, taken)?;
        let granted: Vec<Granted> = places
            .into_iter()
            .map(|place| {
                let uuid = self.devices.get(&place).map(|(_, uuid)| uuid.clone()).unwrap_or_default();
                Granted { place, uuid }
            })
            .collect();
        for (token, slice) in tokens.iter().zip(&granted) {
            self.notes.insert(token.clone(), Note::new(slice.uuid.clone()));
        }
        if let Err(error) = self.write(true) {
            (self.tokens, self.notes) = (tokens_before, notes_before);
            return Err(error.into());
        }
        Ok(granted)
    }

    /// Notes a binding that was found out; `false` when it contradicts another.
    pub fn restore(&mut self, token: &Token, place: Place, uuid: String) -> bool {
        let restored = self.tokens.restore(token.clone(), place);
        if restored {
            self.notes.insert(token.clone(), Note { confirmed: true, ..Note::new(uuid) });
        }
        restored
    }

    /// Strikes out bindings that are over.
    pub fn release(&mut self, tokens: &[Token]) {
        for token in tokens {
            self.tokens.release(token);
            self.notes.remove(token);
        }
    }

    /// Writes the bindings to the journal.
    pub fn write(&mut self, durable: bool) -> Result<(), JournalError> {
        let bindings = self
            .tokens
            .bound()
            .iter()
            .map(|(token, place)| {
                let uuid = self.notes.get(token).map(|note| note.uuid.clone()).unwrap_or_default();
                (token.clone(), Binding { place: place.clone(), uuid })
            })
            .collect();
        self.journal.bind(&bindings, durable)
    }
}

#[cfg(test)]
mod tests {
    use slicegate_core::geometry::Slice;

    use super::*;

    fn place(start: u8) -> Place {
        let slice = Slice { start, size: 1, profile: "1g.10gb".parse().unwrap() };
        Place { gpu: "GPU-1".into(), slice }
    }

    fn token(number: u32) -> Token {
        Token { profile: "1g.10gb".parse().unwrap(), number }
    }

    /// A book with these slices open, and its folder.
    fn book(starts: &[u8]) -> (tempfile::TempDir, SharedBook) {
        let folder = tempfile::tempdir().unwrap();
        let book = reopen(&folder, starts);
        (folder, book)
    }

    fn reopen(folder: &tempfile::TempDir, starts: &[u8]) -> SharedBook {
        let book = SharedBook::new(Journal::open(folder.path(), "boot-1").unwrap());
        {
            let mut book = book.lock();
            book.tokens.set_counts(&[("1g.10gb".parse().unwrap(), 7)].into());
            book.open(starts.iter().map(|start| (place(*start), 0, format!("MIG-{start}"))).collect());
        }
        book
    }

    fn nowhere() -> BTreeSet<Place> {
        BTreeSet::new()
    }

    #[test]
    fn what_was_given_outlives_the_agent() {
        let (folder, book) = book(&[2, 5]);
        let granted = book.lock().allocate(&[token(6), token(0)], &nowhere()).unwrap();
        let given: Vec<_> = granted.iter().map(|g| (g.place.slice.start, g.uuid.as_str())).collect();
        assert_eq!(given, [(2, "MIG-2"), (5, "MIG-5")]);
        let again = reopen(&folder, &[2, 5]);
        let book = again.lock();
        let bindings: Vec<_> = book
            .bindings()
            .map(|(t, p, n)| (t.number, p.slice.start, n.uuid.as_str(), n.confirmed))
            .collect();
        assert_eq!(bindings, [(0, 5, "MIG-5", true), (6, 2, "MIG-2", true)]);
    }

    #[test]
    fn what_cannot_be_noted_is_not_given() {
        let (folder, book) = book(&[2]);
        std::fs::remove_dir_all(folder.path()).unwrap();
        let mut book = book.lock();
        let error = book.allocate(&[token(0)], &nowhere()).unwrap_err();
        assert!(matches!(error, AllocateError::Journal(_)), "{error}");
        assert_eq!((book.bindings().count(), book.note(&token(0)).is_none()), (0, true));
        assert_eq!(book.tokens.place(&token(0)), None);
    }

    #[test]
    fn a_refusal_leaves_everything_as_it_was() {
        let (_folder, book) = book(&[2]);
        let mut book = book.lock();
        book.allocate(&[token(3)], &nowhere()).unwrap();
        let error = book.allocate(&[token(0)], &nowhere()).unwrap_err();
        assert!(matches!(error, AllocateError::Refused(Refusal::NoneFree(_))), "{error}");
        let bound: Vec<u32> = book.bindings().map(|(token, ..)| token.number).collect();
        assert_eq!(bound, [3]);
    }

    #[test]
    fn a_device_that_is_given_on_has_to_be_looked_for() {
        let (_folder, book) = book(&[2, 5]);
        let mut book = book.lock();
        assert_eq!(book.bound_before(&[token(0)]), []);
        book.allocate(&[token(0)], &nowhere()).unwrap();
        assert_eq!(book.bound_before(&[token(0), token(1)]), [(place(2), 0)]);
        let granted = book.allocate(&[token(0)], &[place(2)].into()).unwrap();
        assert_eq!(granted[0].place, place(5), "something lives on in the other");
    }

    #[test]
    fn a_binding_that_was_found_out_does_not_displace_another() {
        let (_folder, book) = book(&[2, 5]);
        let mut book = book.lock();
        book.allocate(&[token(0)], &nowhere()).unwrap();
        assert!(!book.restore(&token(1), place(2), "MIG-2".to_owned()));
        assert!(book.restore(&token(1), place(5), "MIG-5".to_owned()));
        assert!(book.note(&token(1)).unwrap().confirmed);
    }

    #[test]
    fn what_is_given_back_is_forgotten_on_disk_too() {
        let (folder, book) = book(&[2, 5]);
        let mut held = book.lock();
        held.allocate(&[token(0), token(1)], &nowhere()).unwrap();
        held.release(&[token(0)]);
        held.write(false).unwrap();
        let again = reopen(&folder, &[2, 5]);
        let left: Vec<u32> = again.lock().bindings().map(|(token, ..)| token.number).collect();
        assert_eq!(left, [1]);
    }
}
