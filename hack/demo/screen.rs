//! What is going on, live: on a terminal a table and the GPUs, drawn again at every change; elsewhere a line per phase, and
//! the GPUs when most is going on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use slicegate::api::mig_node::SliceState;
use slicegate::cli::gpus;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::timeline::{Phase, Timeline};

/// Often enough for the eye.
const FRAME: Duration = Duration::from_millis(100);

/// The display, until it is told to finish.
pub struct Screen {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Screen {
    /// Begins to show a timeline.
    pub fn start(timeline: Timeline) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let terminal = std::io::stdout().is_terminal();
            let mut display = Display::default();
            loop {
                if terminal {
                    display.redraw(&timeline);
                } else {
                    display.log(&timeline);
                }
                tokio::select! {
                    _ = &mut stopped => break,
                    () = tokio::time::sleep(FRAME) => {}
                }
            }
            if terminal {
                display.redraw(&timeline);
            } else {
                display.log(&timeline);
            }
            if let Some((_, picture)) = display.busiest.filter(|_| !terminal) {
                print!("\nThe GPUs when most was going on:\n\n{picture}");
            }
        });
        Self { stop, task }
    }

    /// Ends the display.
    pub async fn finish(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

#[derive(Default)]
struct Display {
    seen: u64,
    lines: usize,
    said: BTreeMap<String, (Phase, String)>,
    busiest: Option<(usize, String)>,
}

impl Display {
    fn redraw(&mut self, timeline: &Timeline) {
        if timeline.changes() == self.seen {
            return;
        }
        self.seen = timeline.changes();
        let mut text = String::new();
        let _ = writeln!(text, "{:<12} {:>4}  {:<9} {:>7}  ", "WORKLOAD", "PODS", "PHASE", "SINCE");
        for (owner, pods, phase, at, message) in timeline.now() {
            let short: String = message.chars().take(70).collect();
            let _ = writeln!(text, "{owner:<12} {pods:>4}  {:<9} {at:>6.2}s  {short}", format!("{phase:?}"));
        }
        text.push('\n');
        text.push_str(&gpus::picture(&timeline.nodes(), true));
        let mut out = std::io::stdout().lock();
        if self.lines > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines);
        }
        self.lines = text.lines().count();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn log(&mut self, timeline: &Timeline) {
        for (owner, pods, phase, at, message) in timeline.now() {
            let said = (phase, message);
            if self.said.get(&owner) != Some(&said) {
                println!("{at:>7.2}s  {owner:<12} {pods:>3} pods  {:<9} {}", format!("{phase:?}"), said.1);
                self.said.insert(owner, said);
            }
        }
        let nodes = timeline.nodes();
        let busy = nodes
            .iter()
            .flat_map(|n| n.status.iter().flat_map(|s| &s.slices))
            .filter(|s| s.state == SliceState::InUse)
            .count();
        if self.busiest.as_ref().is_none_or(|(most, _)| busy > *most) {
            self.busiest = Some((busy, gpus::picture(&nodes, false)));
        }
    }
}
