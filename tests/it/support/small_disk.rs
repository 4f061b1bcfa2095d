//! A small disk, to be filled up.

use std::path::PathBuf;
use std::process::Command;

/// A file system in memory, unmounted when it goes.
pub struct SmallDisk {
    /// Where it is.
    pub mounted: PathBuf,
}

impl SmallDisk {
    /// Mounts one at a folder, which is made.
    pub fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &at);
        Self { mounted: at }
    }

    /// Gives it another size.
    pub fn grow(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], &self.mounted);
    }

    /// Makes it a user's.
    pub fn give_to(&self, user: &str) {
        let done = Command::new("chown").arg(user).arg(&self.mounted).status().expect("chown runs");
        assert!(done.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).status();
    }
}

fn mount(arguments: &[&str], at: &PathBuf) {
    let done = Command::new("mount").args(arguments).arg(at).status().expect("mount runs");
    assert!(done.success(), "this test mounts a file system: run it as root on Linux");
}
