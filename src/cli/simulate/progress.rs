//! How far it is, on a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

const WIDTH: usize = 40;

/// A bar on stderr, if that is a terminal.
pub struct Progress {
    all: usize,
    done: Mutex<usize>,
    shown: bool,
}

impl Progress {
    /// Nothing of so much is done.
    pub fn new(all: usize) -> Self {
        Self { all, done: Mutex::new(0), shown: all > 1 && std::io::stderr().is_terminal() }
    }

    /// One more is done.
    pub fn step(&self) {
        let Ok(mut done) = self.done.lock() else { return };
        *done += 1;
        if self.shown {
            let bar = bar(*done, self.all);
            // Whoever has closed stderr does not miss it.
            let _ = write!(std::io::stderr(), "\r{bar}");
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn bar(done: usize, all: usize) -> String {
    let full = WIDTH * done / all.max(1);
    format!("[{}{}] {done}/{all}", "#".repeat(full), ".".repeat(WIDTH - full.min(WIDTH)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bar_is_as_full_as_what_is_done() {
        assert_eq!(super::bar(1, 4), format!("[{}{}] 1/4", "#".repeat(10), ".".repeat(30)));
        assert_eq!(super::bar(4, 4), format!("[{}] 4/4", "#".repeat(40)));
    }
}
