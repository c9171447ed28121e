//! Child processes: how they start, how they end, and how nobody else's process is ever hit.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

use crate::ready::Health;
use crate::state::{Entry, StateFile};

/// How long a process may take to end by itself before it is killed.
pub const GRACE: Duration = Duration::from_secs(5);
/// The same for one that [tidies up](ProcessSpec::tidies_up).
const TIDYING: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// What to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessSpec {
    /// Its name in the state, in messages and of its log file.
    pub name: String,
    /// The program: a path, or a name to be looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables on top of the inherited ones.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The port that it serves, for `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What tells that it is ready; all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<Health>,
    /// A folder laid over `/etc`, in the sight of this process alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etc: Option<PathBuf>,
    /// Whether it has something to take away on the machine before it ends: it is asked, and killed only if it does not
    /// answer for long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tidies_up: bool,
}

impl ProcessSpec {
    /// A process with no arguments yet.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            port: None,
            health: Vec::new(),
            etc: None,
            tidies_up: false,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Says which port it serves.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Says what tells that it is ready.
    #[must_use]
    pub fn ready_when(mut self, health: Health) -> Self {
        self.health.push(health);
        self
    }

    /// Lays a folder over `/etc` for this process alone. Needs Linux 5.11 or root.
    #[must_use]
    pub fn over_etc(mut self, folder: impl Into<PathBuf>) -> Self {
        self.etc = Some(folder.into());
        self
    }

    /// Says that it tidies up when it is asked to end (SIGTERM), which then is how it is ended in every case.
    #[must_use]
    pub fn tidies_up(mut self) -> Self {
        self.tidies_up = true;
        self
    }

    /// How long it may take to end by itself, if the others may take so long.
    pub fn grace(&self, usual: Duration) -> Duration {
        if self.tidies_up { TIDYING } else { usual }
    }

    /// The command line, with what has to be arranged before the program starts in front of it. Each link of that
    /// chain replaces itself by the next (exec), so the process id stays the program's.
    fn command(&self, lifetime: Lifetime) -> Result<Command> {
        let mut line: Vec<String> = Vec::new();
        if lifetime == Lifetime::Detached {
            line.push("setsid".into());
        }
        if let Some(etc) = &self.etc {
            let etc = etc.to_string_lossy().into_owned();
            if etc.contains([':', ',']) {
                bail!("{etc}: a folder laid over /etc must have neither a colon nor a comma in its path");
            }
            line.push("unshare".into());
            if !rustix::process::geteuid().is_root() {
                line.push("--map-root-user".into());
            }
            let script = "mount -t overlay overlay -o \"lowerdir=$1:/etc\" /etc && shift && exec \"$@\"";
            line.extend(["--mount", "sh", "-c", script, "sh"].map(String::from));
            line.push(etc);
        }
        if lifetime == Lifetime::Owned {
            line.extend(
                ["setpriv", "--pdeathsig", if self.tidies_up { "TERM" } else { "KILL" }].map(String::from),
            );
        }
        line.push(self.program.to_string_lossy().into_owned());
        line.extend(self.args.iter().cloned());

        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).envs(self.env.iter().map(|(name, value)| (name, value)));
        if lifetime == Lifetime::Owned {
            command.process_group(0);
        }
        Ok(command)
    }
}

/// What becomes of the children when the process that started them ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// They end with it, however it ends: a test that is killed leaves nothing behind.
    Owned,
    /// They go on until `down`: that is what `rig up` is for.
    Detached,
}

/// Which process: a process id is used again for others, together with the start time it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub started: u64,
}

impl ProcessId {
    /// Identifies a process that runs now.
    pub fn of(pid: u32) -> Option<Self> {
        read_stat(pid).map(|(_, started)| Self { pid, started })
    }

    /// Whether this very process still runs. One that has ended and only waits to be collected does not.
    pub fn is_running(self) -> bool {
        matches!(read_stat(self.pid), Some((state, started)) if started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// Sends a signal to the process and to those that it has started, if it still is this process.
    pub fn signal(self, signal: Signal) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return };
        if self.is_running() && kill_process_group(pid, signal).is_err() {
            // Its own group does not exist in the first instants of its life.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until the process is gone; false when it still runs after `limit`.
    pub async fn gone(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    /// SIGTERM, and SIGKILL for what is left after `grace`.
    pub async fn end(self, grace: Duration) {
        self.signal(Signal::TERM);
        if !self.gone(grace).await {
            self.signal(Signal::KILL);
            self.gone(GRACE).await;
        }
    }
}

/// State letter and start time.
fn read_stat(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may contain anything; count from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

/// A process under the rig's care. Clones are handles of the same process.
#[derive(Debug, Clone)]
pub struct Process {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: ProcessSpec,
    log: PathBuf,
    lifetime: Lifetime,
    state: StateFile,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    id: ProcessId,
    /// Present when this program started the process: then it must also be collected here.
    child: Option<Child>,
}

impl Process {
    /// Starts a process and records it.
    pub(crate) fn start(
        spec: ProcessSpec,
        logs: &Path,
        lifetime: Lifetime,
        state: &StateFile,
    ) -> Result<Self> {
        let log = logs.join(format!("{}.log", spec.name));
        let running = start(&spec, &log, lifetime)?;
        let shared = Shared { spec, log, lifetime, state: state.clone(), running: Mutex::new(running) };
        let process = Self { shared: Arc::new(shared) };
        process.record()?;
        Ok(process)
    }

    /// A process that another command has started.
    pub(crate) fn attach(entry: Entry, state: &StateFile) -> Self {
        let running = Mutex::new(Running { id: entry.id, child: None });
        let (spec, log, state) = (entry.spec, entry.log, state.clone());
        Self { shared: Arc::new(Shared { spec, log, lifetime: Lifetime::Detached, state, running }) }
    }

    fn record(&self) -> Result<()> {
        let (spec, log, id) = (self.shared.spec.clone(), self.shared.log.clone(), self.id());
        self.shared.state.record(Entry { spec, id, log })
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.spec.name
    }

    /// How it was started.
    pub fn spec(&self) -> &ProcessSpec {
        &self.shared.spec
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.id().pid
    }

    /// Its identity.
    pub fn id(&self) -> ProcessId {
        self.running().id
    }

    /// Its log file.
    pub fn log_path(&self) -> &Path {
        &self.shared.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.shared.log, lines)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        let mut running = self.running();
        match &mut running.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => running.id.is_running(),
        }
    }

    /// How it ended; `None` while it runs, and for a process that another command has started.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.running().child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Sends any signal, for example `Signal::STOP` and `Signal::CONT` for a process that hangs for a while.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            self.id().signal(signal);
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone: a crash.
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL);
        self.wait(GRACE).await
    }

    /// Asks it to end (SIGTERM) and waits. What does not end within `grace` is killed, and that is an error.
    pub async fn terminate_within(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::TERM);
        if self.wait(grace).await.is_err() {
            self.kill().await?;
            bail!("{} did not end within {grace:?} of SIGTERM and was killed", self.name());
        }
        Ok(())
    }

    /// [`Process::terminate_within`] five seconds, or what it needs to tidy up.
    pub async fn terminate(&self) -> Result<()> {
        self.terminate_within(self.shared.spec.grace(GRACE)).await
    }

    /// Waits until it has ended.
    pub async fn wait(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                bail!("{} still runs after {limit:?}", self.name());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Starts it again, as it was started the first time; one that still runs is killed first. The log goes on.
    pub async fn restart(&self) -> Result<()> {
        if self.is_running() {
            self.kill().await?;
        }
        let running = start(&self.shared.spec, &self.shared.log, self.shared.lifetime)?;
        *self.running() = running;
        self.record()
    }

    /// Kills it without waiting for anything but its end; for `Drop`, which cannot await.
    pub(crate) fn kill_now(&self) {
        if self.shared.spec.tidies_up {
            self.signal(Signal::TERM);
            let deadline = Instant::now() + TIDYING;
            while self.is_running() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
        }
        let mut running = self.running();
        running.id.signal(Signal::KILL);
        if let Some(child) = &mut running.child {
            let _ = child.wait();
        }
    }
}

fn start(spec: &ProcessSpec, log: &Path, lifetime: Lifetime) -> Result<Running> {
    let file = fs::File::options()
        .append(true)
        .create(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let mut command = spec.command(lifetime)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let child =
        spawn(command).with_context(|| format!("start {} ({})", spec.name, spec.program.display()))?;
    let id = ProcessId::of(child.id())
        .with_context(|| format!("{} ended at once; its log is {}", spec.name, log.display()))?;
    Ok(Running { id, child: Some(child) })
}

/// Starts a command from a thread that lives as long as this program. The parent-death signal is sent when the
/// *thread* that started the child ends, and the threads of a test or of a runtime end long before their program.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in orders {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    starter.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// The last lines of a file that may be large and may be growing.
pub fn tail(path: &Path, lines: usize) -> String {
    const WINDOW: u64 = 64 * 1024;
    let read = || -> io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of_self() -> ProcessId {
        ProcessId::of(std::process::id()).unwrap()
    }

    #[test]
    fn a_reused_process_id_is_another_process() {
        let me = id_of_self();
        assert!(me.is_running());
        assert!(!ProcessId { started: me.started + 1, ..me }.is_running());
    }

    /// Plays a program that is killed: the test below runs it in a process of its own.
    #[tokio::test]
    #[ignore = "is run by children_end_with_a_killed_owner"]
    async fn owner() {
        let Some(dir) = std::env::var_os("RIG_TEST_DIR") else { return };
        let dir = PathBuf::from(dir);
        let spec = ProcessSpec::new("sleeper", "sleep").arg("300");
        Process::start(spec, &dir, Lifetime::Owned, &StateFile::new(&dir)).unwrap();
        tokio::time::sleep(Duration::from_mins(5)).await;
    }

    #[tokio::test]
    async fn children_end_with_a_killed_owner() {
        let dir = std::env::temp_dir().join(format!("rig-owner-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["process::tests::owner", "--exact", "--ignored"])
            .env("RIG_TEST_DIR", &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let child = loop {
            let started = StateFile::new(&dir)
                .load()
                .unwrap()
                .and_then(|state| state.processes.first().map(|it| it.id));
            if let Some(id) = started
                && fs::read_to_string(format!("/proc/{}/comm", id.pid))
                    .is_ok_and(|name| name.trim() == "sleep")
            {
                break id;
            }
            assert!(Instant::now() < deadline, "the owner has started nothing");
            tokio::time::sleep(POLL).await;
        };
        owner.kill().unwrap();
        owner.wait().unwrap();
        assert!(child.gone(Duration::from_secs(5)).await);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_missing_file_has_no_last_lines() {
        assert_eq!(tail(Path::new("/does/not/exist"), 3), "");
    }
}
