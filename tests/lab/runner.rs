//! Runs the stories file by file, one after the other, one file at a time on this machine; then
//! the patient ones, two at a time ([`lanes`]; `--test-threads 1`: one).
//!
//! A story that fails does not keep the others from being told; one that hangs does. The harness is
//! our own because a lab needs what threads of a common one cannot have: a process that enters
//! namespaces, that is its own traffic tool, and that nobody else's lab disturbs.
//! It understands the flags of `cargo test` that matter: filters, `--exact`, `--skip`, `--list`,
//! `--test-threads 1`.

use std::env;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::process::{awaited, have, try_sh, wait_child};
use super::{bench, intruder, lanes, meter, sys, talkers, transfer};

/// What a story cannot do without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Network namespaces and a TUN device: an ordinary user can have both.
    Anyone,
    /// Loop devices, real-time priority or other accounts as well.
    Root,
}

pub(crate) struct Story {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) tools: &'static [&'static str],
    /// After this time the story is called hung. No story asserts how fast it runs.
    pub(crate) guard: Duration,
    pub(crate) tell: fn(),
}

/// `SIDEPATH_LAB=long` asks for the figures of the acceptance list instead of a short pass.
pub(crate) fn long() -> bool {
    env::var("SIDEPATH_LAB").is_ok_and(|value| value == "long")
}

/// In namespaces of an ordinary user: no loop device, no real-time priority.
pub(crate) fn unprivileged() -> bool {
    env::var_os(IN_USER_NAMESPACE).is_some()
}

/// Prefix of every namespace of this process.
pub(crate) fn prefix() -> String {
    format!("spl{}", std::process::id())
}

/// The folder of this process, removed at its end.
pub(crate) fn folder() -> PathBuf {
    base().join(format!("sidepath-lab-{}", std::process::id()))
}

/// The stories of one file below `stories/`.
pub(crate) struct File {
    pub(crate) name: &'static str,
    pub(crate) stories: fn() -> Vec<Story>,
}

/// What became of the stories.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

/// Tells what the command line asks for: file by file, then those of `patient` in that order.
pub(crate) fn main(files: &[File], patient: &[&str]) -> ExitCode {
    if let Ok(helper) = env::var(HELPER) {
        let arguments: Vec<String> = env::args().skip(1).collect();
        return match helper.as_str() {
            "lane" => tell_in_this_lane(files, &arguments[0]),
            "watchdog" => watchdog(&arguments[0], Path::new(&arguments[1])),
            "meter" => meter::helper(&arguments),
            "intruder" => intruder::helper(&arguments),
            "transfer" => transfer::helper(&arguments),
            "talkers" => talkers::helper(&arguments),
            other => panic!("no helper is called {other}"),
        };
    }
    for name in patient {
        let known = |file: &File| {
            (file.stories)().iter().any(|story| format!("{}::{}", file.name, story.name) == *name)
        };
        assert!(files.iter().any(known), "no story is called {name}");
    }
    let flags = Flags::parse(env::args().skip(1));
    let mut wanted = Vec::new();
    for file in files {
        let mut stories = (file.stories)();
        stories.retain(|story| flags.want(file.name, story.name));
        if !stories.is_empty() {
            wanted.push((file.name, stories));
        }
    }
    if flags.list {
        for (file, stories) in &wanted {
            stories.iter().for_each(|story| println!("{file}::{}: test", story.name));
        }
        return ExitCode::SUCCESS;
    }

    let unfit = if wanted.is_empty() { None } else { enter() };
    // One told alone is told here, where what it says is seen at once. Figures of the long runs
    // are those of a quiet machine.
    let names = wanted.iter().flat_map(|(file, stories)| stories.iter().map(move |s| (*file, s)));
    let lanes = !flags.alone
        && !long()
        && thread::available_parallelism().is_ok_and(|n| n.get() > 1)
        && names.filter(|(file, story)| patience(patient, file, story).is_some()).count() > 1;
    let (mut all, mut later) = (Tally::default(), Vec::new());
    for (file, stories) in &wanted {
        let (patient, now): (Vec<_>, Vec<_>) =
            stories.iter().partition(|story| lanes && patience(patient, file, story).is_some());
        later.extend(patient.into_iter().map(|story| (*file, story)));
        all.add(tell(file, &now, unfit.as_deref()));
    }
    later.sort_by_key(|(file, story)| patience(patient, file, story));
    all.add(tell_in_lanes(&later, unfit.as_deref()));
    println!("\n{all} in the lab");
    for failed in &all.failed {
        println!("    FAILED {failed}");
    }
    all.code()
}

/// The place of a story among the patient ones.
fn patience(patient: &[&str], file: &str, story: &Story) -> Option<usize> {
    let name = format!("{file}::{}", story.name);
    patient.iter().position(|patient| *patient == name)
}

/// Tells the stories of one file. The machine is swept before the first and after the last, so
/// that no file builds on what another left.
fn tell(file: &str, stories: &[&Story], unfit: Option<&str>) -> Tally {
    let mut tally = Tally::default();
    if stories.is_empty() {
        return tally;
    }
    let _alone = one_lab_at_a_time();
    sweep();
    let watch = unfit.is_none().then(|| Watch::begin(&folder()));
    println!("\nrunning {} stories of {file}", stories.len());
    for story in stories {
        let name = format!("{file}::{}", story.name);
        if !tally.skips(&name, story, unfit) {
            tally.count(name.clone(), tell_one(&name, story));
        }
    }
    drop(watch);
    println!("{tally} in {file}");
    tally
}

/// Tells patient stories, two at a time, each in a process of its own.
fn tell_in_lanes(stories: &[(&str, &Story)], unfit: Option<&str>) -> Tally {
    let mut tally = Tally::default();
    if stories.is_empty() {
        return tally;
    }
    let _alone = one_lab_at_a_time();
    sweep();
    println!("\nrunning {} patient stories, {} at a time", stories.len(), lanes::LANES);
    let mut fit = Vec::new();
    for (file, story) in stories {
        let name = format!("{file}::{}", story.name);
        if !tally.skips(&name, story, unfit) {
            fit.push(name);
        }
    }
    for (name, well) in lanes::tell(fit) {
        tally.count(name, well);
    }
    println!("{tally} of the patient stories");
    tally
}

/// What a process of [`lanes`] does: one story, in a folder of its own, until the story or the
/// one who asked for it ends.
fn tell_in_this_lane(files: &[File], name: &str) -> ExitCode {
    lanes::end_with_the_asker();
    let (file, story) = name.split_once("::").expect("file::story");
    let file = files.iter().find(|known| known.name == file).expect("a file of stories");
    let story = (file.stories)().into_iter().find(|known| known.name == story).expect("a story");
    let watch = Watch::begin(&folder());
    let well = tell_one(name, &story);
    drop(watch);
    if well { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn tell_one(name: &str, story: &Story) -> bool {
    let began = Instant::now();
    println!("story {name} ...");
    let guard = hang_guard(name, story.guard);
    let told = panic::catch_unwind(AssertUnwindSafe(story.tell));
    drop(guard);
    let verdict = if told.is_ok() { "ok" } else { "FAILED" };
    println!("story {name} ... {verdict} ({:.1} s)", began.elapsed().as_secs_f64());
    told.is_ok()
}

impl Tally {
    /// Says why a story cannot be told here, and counts it, unless it can.
    fn skips(&mut self, name: &str, story: &Story, unfit: Option<&str>) -> bool {
        let Some(reason) = unfit.map(str::to_owned).or_else(|| lacks(story)) else {
            return false;
        };
        println!("SKIPPED {name}: {reason}");
        self.skipped += 1;
        let wrong_user = story.needs == Needs::Root && unprivileged();
        if env::var_os("SIDEPATH_LAB_REQUIRE").is_some() && !wrong_user {
            println!("  and SIDEPATH_LAB_REQUIRE is set: a skip counts as a failure");
            self.failed.push(name.to_owned());
        }
        true
    }

    fn count(&mut self, name: String, well: bool) {
        if well {
            self.passed += 1;
        } else {
            self.failed.push(name);
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.skipped += other.skipped;
        self.failed.extend(other.failed);
    }

    fn code(&self) -> ExitCode {
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, passed, skipped) = (self.failed.len(), self.passed, self.skipped);
        let result = if failed == 0 { "ok" } else { "FAILED" };
        write!(out, "test result: {result}. {passed} passed; {failed} failed; {skipped} skipped")
    }
}

/// A command that runs this executable as one of its helpers.
pub(crate) fn helper(kind: &str) -> (String, PathBuf) {
    (format!("{HELPER}={kind}"), env::current_exe().expect("the path of the test binary"))
}

pub(crate) fn realtime_prefix() -> &'static [&'static str] {
    static ABLE: OnceLock<bool> = OnceLock::new();
    let able = *ABLE.get_or_init(|| try_sh("chrt -f 40 true").is_some());
    if able { &["chrt", "-f", "40"] } else { &[] }
}

const HELPER: &str = "SIDEPATH_LAB_HELPER";
const IN_USER_NAMESPACE: &str = "SIDEPATH_LAB_IN_USER_NAMESPACE";

fn base() -> PathBuf {
    env::var_os("SIDEPATH_LAB_DIR").map_or_else(env::temp_dir, PathBuf::from)
}

/// Gets to a place where namespaces can be made, or says why that is impossible here. An
/// ordinary user gets there by starting over inside namespaces of its own.
fn enter() -> Option<String> {
    if !have("ip") || !have("nft") || !have("nsenter") {
        return Some("needs ip, nft and nsenter (iproute2, nftables, util-linux)".to_owned());
    }
    if OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
        return Some("/dev/net/tun cannot be opened for writing (chmod 0666)".to_owned());
    }
    let probe = format!("{}-probe", prefix());
    if sys::effective_uid() == 0 {
        return match try_sh(&format!("ip netns add {probe} && ip netns del {probe}")) {
            Some(_) => None,
            None => Some("root here may not make network namespaces".to_owned()),
        };
    }
    if try_sh("unshare -Urnm true").is_none() {
        return Some("an ordinary user may not make user namespaces here".to_owned());
    }
    let error = Command::new("unshare")
        .args(["-Urnm", "sh", "-c"])
        .arg("mount -t tmpfs tmpfs /run && mkdir /run/netns && exec \"$@\"")
        .arg("sh")
        .arg(env::current_exe().expect("the path of the test binary"))
        .args(env::args_os().skip(1))
        .env(IN_USER_NAMESPACE, "1")
        .env("PATH", format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default()))
        .exec();
    Some(format!("unshare: {error}"))
}

fn lacks(story: &Story) -> Option<String> {
    if story.needs == Needs::Root && unprivileged() {
        return Some("needs root (loop devices, other accounts)".to_owned());
    }
    let missing: Vec<_> = story.tools.iter().copied().filter(|tool| !have(tool)).collect();
    (!missing.is_empty()).then(|| format!("needs {}", missing.join(", ")))
}

/// Waits until no other lab runs on this machine.
fn one_lab_at_a_time() -> fs::File {
    let path = env::temp_dir().join("sidepath-lab.lock");
    // Opened for reading only, so that root and an ordinary user can share it in a sticky folder.
    let file = fs::File::open(&path).or_else(|_| {
        let _ = OpenOptions::new().write(true).create_new(true).open(&path);
        let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o644));
        fs::File::open(&path)
    });
    let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if !sys::lock(&file, false) {
        println!("another lab runs on this machine; waiting for {}", path.display());
        sys::lock(&file, true);
    }
    file
}

/// Clears what labs left behind whose process is gone.
fn sweep() {
    for entry in fs::read_dir(base()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("sidepath-lab-").filter(|pid| pid.parse::<u32>().is_ok())
        else {
            continue;
        };
        let abandoned =
            fs::File::open(entry.path().join("owner")).is_ok_and(|owner| sys::lock(&owner, false));
        if abandoned {
            println!("sweeping up after a lab that was killed: {name}");
            bench::clear(&format!("spl{pid}"), &entry.path());
        }
    }
}

/// Holds the folder of this process, and the child that clears up if this process is killed.
struct Watch {
    child: std::process::Child,
    _owner: fs::File,
}

impl Watch {
    fn begin(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        // Other accounts (a database's) work in folders below.
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
        let owner = fs::File::create(folder.join("owner")).expect("a file in our own folder");
        sys::lock(&owner, true);
        let child = Command::new(env::current_exe().expect("the path of the test binary"))
            .arg(prefix())
            .arg(folder)
            .env(HELPER, "watchdog")
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a watchdog");
        Self { child, _owner: owner }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = wait_child(&mut self.child, Duration::from_secs(60));
    }
}

fn watchdog(prefix: &str, folder: &Path) -> ExitCode {
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
    bench::clear(prefix, folder);
    ExitCode::SUCCESS
}

/// Ends the process when a story hangs, saying what it waited for. Dropping the sender ends the
/// guard.
fn hang_guard(name: &str, limit: Duration) -> mpsc::Sender<()> {
    let (done, ended) = mpsc::channel();
    let name = name.to_owned();
    thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            println!("story {name} ... HUNG for {limit:?}, awaiting: {}", awaited());
            println!("test result: FAILED. {name} hung");
            std::process::exit(101);
        }
    });
    done
}

#[derive(Default)]
struct Flags {
    list: bool,
    exact: bool,
    ignored: bool,
    /// One story at a time, also of the patient ones.
    alone: bool,
    filters: Vec<String>,
    skips: Vec<String>,
}

impl Flags {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut flags = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => flags.list = true,
                "--exact" => flags.exact = true,
                "--ignored" => flags.ignored = true,
                "--skip" => flags.skips.extend(arguments.next()),
                "--test-threads" => flags.alone = arguments.next().is_some_and(|n| n == "1"),
                "--test-threads=1" => flags.alone = true,
                "--format" | "--color" | "--logfile" | "-Z" => {
                    arguments.next();
                }
                other if other.starts_with('-') => {}
                filter => flags.filters.push(filter.to_owned()),
            }
        }
        flags
    }

    /// A story is chosen by any part of `file::story`; with `--exact` by all of it, by the file's
    /// name or by its own.
    fn want(&self, file: &str, story: &str) -> bool {
        let name = format!("{file}::{story}");
        let fits = |text: &String| {
            if self.exact {
                [&name, file, story].contains(&text.as_str())
            } else {
                name.contains(text.as_str())
            }
        };
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(fits))
            && !self.skips.iter().any(fits)
    }
}
