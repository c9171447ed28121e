//! Scenarios in processes of their own, and the C calls as Rust functions.

use std::{
    env,
    ffi::{CString, c_uint},
    fs,
    path::PathBuf,
    process::{Command, Output},
    ptr::null_mut,
};

use nvml_sim::{StateDir, config::CONFIG_ENV};
use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlComputeInstance_t, nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlGpuInstance_t,
    nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const STEP_ENV: &str = "NVML_SIM_TEST_STEP";
const DIR_ENV: &str = "NVML_SIM_TEST_DIR";

/// The library under test, which cargo builds beside the test executable. (The copy in the folder above is made by
/// `cargo build` only, and may be an old one.)
pub fn library() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().join("libnvml_sim.so")
}

/// The step that this process has to do, if it is a scenario's.
pub fn step() -> Option<String> {
    env::var(STEP_ENV).ok()
}

/// The scenario's state directory, in a scenario's process.
pub fn state_dir() -> StateDir {
    StateDir::open(PathBuf::from(env::var_os(DIR_ENV).unwrap()).join("state"))
}

/// A simulated node, as the test that starts the processes sees it.
pub struct Node {
    dir: TempDir,
}

impl Node {
    pub fn new(config: &Value) -> Self {
        let node = Self { dir: TempDir::new().unwrap() };
        node.configure(config);
        node
    }

    /// Writes the configuration. The state directory is added.
    pub fn configure(&self, config: &Value) {
        let mut config = config.clone();
        config["stateDir"] = json!(self.dir.path().join("state"));
        fs::write(self.config(), config.to_string()).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("sim.json")
    }

    pub fn state_file(&self) -> PathBuf {
        self.dir.path().join("state/state.json")
    }

    pub fn state(&self) -> StateDir {
        StateDir::open(self.dir.path().join("state"))
    }

    /// Runs a step of a test in a process of its own, which must succeed. Returns what it wrote to stderr.
    pub fn run(&self, test: &str, step: &str) -> String {
        let Output { status, stdout, stderr } = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(STEP_ENV, step)
            .env(DIR_ENV, self.dir.path())
            .env(CONFIG_ENV, self.config())
            .output()
            .unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        // A name that matches no test is a success to the test runner.
        let ran = status.success() && stdout.contains("1 passed");
        assert!(ran, "{test}, step {step}: {status}\n{stdout}\n{stderr}");
        stderr.into_owned()
    }
}

/// A test whose only step runs in a process with the given configuration.
macro_rules! scenario {
    ($name:ident, $config:expr, $body:expr) => {
        #[test]
        fn $name() {
            if $crate::harness::step().is_some() {
                let body: fn($crate::harness::Api) = $body;
                return body($crate::harness::Api::open());
            }
            $crate::harness::Node::new(&$config).run(&$crate::harness::test_name!($name), "only");
        }
    };
}

/// A test's name as the test runner knows it.
macro_rules! test_name {
    ($name:ident) => {
        format!("{}::{}", module_path!().split_once("::").unwrap().1, stringify!($name))
    };
}

pub(crate) use {scenario, test_name};

/// Calls a C function and turns its return code into a result.
macro_rules! c {
    ($lib:expr, $function:ident($($argument:expr),*)) => {{
        // SAFETY: the tests pass what nvml.h asks for, or what the library must refuse without looking behind it.
        match unsafe { ($lib.$function.as_ref().unwrap())($($argument),*) } {
            0 => Ok(()),
            code => Err(code),
        }
    }};
}
pub(crate) use c;

/// The C functions that a MIG agent needs.
pub struct Api {
    pub nvml: Nvml,
}

impl Api {
    pub fn open() -> Self {
        Self { nvml: Nvml::builder().lib_path(library().as_os_str()).init().unwrap() }
    }

    pub fn lib(&self) -> &NvmlLib {
        self.nvml.lib()
    }

    pub fn gpu(&self, index: u32) -> nvmlDevice_t {
        let mut device = null_mut();
        c!(self.lib(), nvmlDeviceGetHandleByIndex_v2(index, &mut device)).unwrap();
        device
    }

    pub fn create(
        &self,
        gpu: nvmlDevice_t,
        profile: u32,
        start: u32,
        size: u32,
    ) -> Result<nvmlGpuInstance_t, u32> {
        let at = nvmlGpuInstancePlacement_t { start, size };
        let mut gi = null_mut();
        c!(self.lib(), nvmlDeviceCreateGpuInstanceWithPlacement(gpu, profile, &raw const at, &mut gi))?;
        Ok(gi)
    }

    pub fn create_compute(&self, gi: nvmlGpuInstance_t, profile: u32) -> Result<nvmlComputeInstance_t, u32> {
        let mut ci = null_mut();
        c!(self.lib(), nvmlGpuInstanceCreateComputeInstance(gi, profile, &mut ci))?;
        Ok(ci)
    }

    pub fn destroy(&self, gi: nvmlGpuInstance_t) -> Result<(), u32> {
        c!(self.lib(), nvmlGpuInstanceDestroy(gi))
    }

    pub fn destroy_compute(&self, ci: nvmlComputeInstance_t) -> Result<(), u32> {
        c!(self.lib(), nvmlComputeInstanceDestroy(ci))
    }

    pub fn info(&self, gi: nvmlGpuInstance_t) -> Result<nvmlGpuInstanceInfo_t, u32> {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        let mut info = unsafe { std::mem::zeroed() };
        c!(self.lib(), nvmlGpuInstanceGetInfo(gi, &mut info))?;
        Ok(info)
    }

    /// GPU instance ids of a profile.
    pub fn list(&self, gpu: nvmlDevice_t, profile: u32) -> Result<Vec<u32>, u32> {
        let mut found = [null_mut(); 8];
        let mut n = 0;
        c!(self.lib(), nvmlDeviceGetGpuInstances(gpu, profile, found.as_mut_ptr(), &mut n))?;
        found[..n as usize].iter().map(|gi| self.info(*gi).map(|info| info.id)).collect()
    }

    pub fn mig_device(&self, gpu: nvmlDevice_t, index: u32) -> Result<nvmlDevice_t, u32> {
        let mut device = null_mut();
        c!(self.lib(), nvmlDeviceGetMigDeviceHandleByIndex(gpu, index, &mut device))?;
        Ok(device)
    }

    pub fn by_uuid(&self, uuid: &str) -> Result<nvmlDevice_t, u32> {
        let uuid = CString::new(uuid).unwrap();
        let mut device = null_mut();
        c!(self.lib(), nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &mut device))?;
        Ok(device)
    }

    pub fn uuid(&self, device: nvmlDevice_t) -> Result<String, u32> {
        let mut text = [0u8; 96];
        c!(self.lib(), nvmlDeviceGetUUID(device, text.as_mut_ptr().cast(), 96))?;
        Ok(std::ffi::CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap().to_owned())
    }

    /// An event set that takes these types of events of a GPU.
    pub fn listen(&self, gpu: nvmlDevice_t, types: u64) -> nvmlEventSet_t {
        let mut set = null_mut();
        c!(self.lib(), nvmlEventSetCreate(&mut set)).unwrap();
        c!(self.lib(), nvmlDeviceRegisterEvents(gpu, types, set)).unwrap();
        set
    }

    /// The next event: type, data, GPU instance id, compute instance id.
    pub fn wait(&self, set: nvmlEventSet_t, ms: u32) -> Result<(u64, u64, u32, u32), u32> {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        let mut data: nvmlEventData_t = unsafe { std::mem::zeroed() };
        c!(self.lib(), nvmlEventSetWait_v2(set, &mut data, ms))?;
        Ok((data.eventType, data.eventData, data.gpuInstanceId, data.computeInstanceId))
    }

    /// A function with the shape (handle, out number).
    pub fn number<T>(
        &self,
        f: impl Fn(&NvmlLib, *mut T, *mut c_uint) -> Result<(), u32>,
        of: *mut T,
    ) -> Result<u32, u32> {
        let mut n = u32::MAX;
        f(self.lib(), of, &raw mut n)?;
        Ok(n)
    }
}

/// The ids of A100 profiles used all over.
pub mod a100 {
    pub const G1: u32 = 19;
    pub const G1_ME: u32 = 20;
    pub const G2: u32 = 14;
    pub const G3: u32 = 9;
    pub const G7: u32 = 0;
}

/// Two A100-80GB.
pub fn two_a100() -> Value {
    json!({"node": "n1", "bootID": "boot-1", "gpus": [{"model": "A100-80GB", "count": 2}]})
}
