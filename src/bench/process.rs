//! What processes used, from `/proc`.

use std::fs;

/// The kernel's unit of CPU time in `/proc`, on every Linux that people run: a hundredth of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Fields of `/proc/PID/stat` after the command's name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn ticks(fields: &[String], from: usize, count: usize) -> f64 {
    fields.iter().skip(from).take(count).filter_map(|field| field.parse::<f64>().ok()).sum()
}

/// CPU seconds of a process, and of its children, ended ones included.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let Some(own) = stat(pid) else { return 0.0 };
    // utime, stime, cutime, cstime.
    let mut sum = ticks(&own, 11, 4);
    for child in children(pid) {
        sum += stat(child).map_or(0.0, |fields| ticks(&fields, 11, 2));
    }
    sum / TICKS_PER_SECOND
}

fn children(pid: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = pid.to_string();
    pids.filter(|&child| stat(child).is_some_and(|fields| fields.get(1) == Some(&parent))).collect()
}

/// Bytes of a process's own memory that are resident now: without files and what it shares.
#[must_use]
pub fn memory_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib << 10)
}
