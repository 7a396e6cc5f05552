//! Runs the stories of one test file, one after the other, one file at a time on this machine.
//!
//! The harness is our own because a lab needs what threads of a common one cannot have: a process
//! that enters namespaces, that is its own traffic tool, and that nobody else's lab disturbs.
//! It understands the flags of `cargo test` that matter: filters, `--exact`, `--skip`, `--list`.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use super::process::{awaited, have, try_sh, wait_child};
use super::{bench, intruder, meter, sys, talkers, transfer};

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

pub(crate) fn main(stories: &[Story]) -> ExitCode {
    if let Ok(helper) = env::var(HELPER) {
        let arguments: Vec<String> = env::args().skip(1).collect();
        return match helper.as_str() {
            "watchdog" => watchdog(&arguments[0], Path::new(&arguments[1])),
            "meter" => meter::helper(&arguments),
            "intruder" => intruder::helper(&arguments),
            "transfer" => transfer::helper(&arguments),
            "talkers" => talkers::helper(&arguments),
            other => panic!("no helper is called {other}"),
        };
    }
    let file = name_of_this_file();
    let flags = Flags::parse(env::args().skip(1));
    let wanted: Vec<&Story> = stories.iter().filter(|story| flags.want(story.name)).collect();
    if flags.list {
        for story in wanted {
            println!("{}: test", story.name);
        }
        return ExitCode::SUCCESS;
    }
    if wanted.is_empty() {
        println!("test result: ok. 0 passed; 0 failed; 0 skipped in {file}");
        return ExitCode::SUCCESS;
    }

    let unfit = enter();
    let _alone = one_lab_at_a_time();
    sweep();
    let watch = unfit.is_none().then(|| Watch::begin(&folder()));

    println!("\nrunning {} stories of {file}", wanted.len());
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for story in wanted {
        if let Some(reason) = unfit.clone().or_else(|| lacks(story)) {
            println!("SKIPPED {file}::{}: {reason}", story.name);
            skipped += 1;
            let wrong_user = story.needs == Needs::Root && unprivileged();
            if env::var_os("SIDEPATH_LAB_REQUIRE").is_some() && !wrong_user {
                println!("  and SIDEPATH_LAB_REQUIRE is set: a skip counts as a failure");
                failed.push(story.name);
            }
            continue;
        }
        let began = Instant::now();
        println!("story {} ...", story.name);
        let guard = hang_guard(story);
        let told = panic::catch_unwind(AssertUnwindSafe(story.tell));
        drop(guard);
        let verdict = if told.is_ok() { "ok" } else { "FAILED" };
        println!("story {} ... {verdict} ({:.1} s)", story.name, began.elapsed().as_secs_f64());
        if told.is_ok() {
            passed += 1;
        } else {
            failed.push(story.name);
        }
    }
    drop(watch);
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "test result: {result}. {passed} passed; {} failed; {skipped} skipped in {file}{}{}\n",
        failed.len(),
        if failed.is_empty() { "" } else { ": failed " },
        failed.join(", ")
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
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

fn name_of_this_file() -> String {
    let path = env::current_exe().expect("the path of the test binary");
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.rsplit_once('-').map_or(name.as_str(), |(front, _)| front).to_owned()
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
fn one_lab_at_a_time() -> File {
    let path = env::temp_dir().join("sidepath-lab.lock");
    // Opened for reading only, so that root and an ordinary user can share it in a sticky folder.
    let file = File::open(&path).or_else(|_| {
        let _ = OpenOptions::new().write(true).create_new(true).open(&path);
        let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o644));
        File::open(&path)
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
            File::open(entry.path().join("owner")).is_ok_and(|owner| sys::lock(&owner, false));
        if abandoned {
            println!("sweeping up after a lab that was killed: {name}");
            bench::clear(&format!("spl{pid}"), &entry.path());
        }
    }
}

/// Holds the folder of this process, and the child that clears up if this process is killed.
struct Watch {
    child: std::process::Child,
    _owner: File,
}

impl Watch {
    fn begin(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        // Other accounts (a database's) work in folders below.
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
        let owner = File::create(folder.join("owner")).expect("a file in our own folder");
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
fn hang_guard(story: &Story) -> mpsc::Sender<()> {
    let (done, ended) = mpsc::channel();
    let (name, limit) = (story.name, story.guard);
    std::thread::spawn(move || {
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
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => {
                    arguments.next();
                }
                other if other.starts_with('-') => {}
                filter => flags.filters.push(filter.to_owned()),
            }
        }
        flags
    }

    fn want(&self, name: &str) -> bool {
        let fits = |text: &String| {
            if self.exact { text == name } else { name.contains(text.as_str()) }
        };
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(fits))
            && !self.skips.iter().any(fits)
    }
}
