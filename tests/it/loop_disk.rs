//! A small ext4 of its own, whose power can be cut (`EXT4_IOC_SHUTDOWN`).

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What the cut leaves of the file system's own journal.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// What was in memory is written: sizes and names survive, data that was not synced does not.
    JournalFlushed = 1,
    /// Nothing that was in memory is written.
    NothingFlushed = 2,
}

/// A mounted loop device.
pub struct LoopDisk {
    image: PathBuf,
    /// Where it is mounted.
    pub mounted: PathBuf,
    _folder: tempfile::TempDir,
}

/// Cuts the power when told to.
pub struct PowerSwitch(Child);

impl PowerSwitch {
    /// Begins to cut the power, without waiting until it is done.
    pub fn begin(&mut self) {
        drop(self.0.stdin.take());
    }

    /// When it returns, nothing reaches the disk any more, and every call on it fails.
    pub fn cut(mut self) {
        self.begin();
        assert!(self.0.wait().unwrap().success(), "the power was not cut");
    }
}

impl LoopDisk {
    /// An empty disk of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = Self { image: folder.path().join("image"), mounted: folder.path().join("mounted"), _folder: folder };
        std::fs::File::create(&disk.image).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(&disk.mounted).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&disk.image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&disk.image).arg(&disk.mounted));
        disk
    }

    /// A process that waits to cut the power. The call is an ioctl, for which Python is the shortest safe way.
    pub fn power_switch(&self, cut: Cut) -> PowerSwitch {
        let ioctl = "import fcntl, os, struct, sys\n\
                     folder = os.open(sys.argv[1], os.O_RDONLY)\n\
                     print('ready', flush=True)\n\
                     sys.stdin.read()\n\
                     fcntl.ioctl(folder, 0x8004587D, struct.pack('I', int(sys.argv[2])))";
        let mut switch = Command::new("python3")
            .args(["-c", ioctl])
            .arg(&self.mounted)
            .arg((cut as u32).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs python3 (apt install python3)");
        let mut ready = String::new();
        BufReader::new(switch.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        PowerSwitch(switch)
    }

    /// Mounts the disk again, as after a power cut.
    pub fn mount_again(&self) {
        for _ in 0..100 {
            if Command::new("umount").arg(&self.mounted).stderr(Stdio::null()).status().unwrap().success() {
                return run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mounted));
            }
            // Somebody still has a file open.
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{} stays busy", self.mounted.display());
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).stderr(Stdio::null()).status();
    }
}

fn run(command: &mut Command) {
    let done = command.output().map(|output| output.status.success());
    assert!(
        matches!(done, Ok(true)),
        "{command:?}: {done:?}; this test needs root, e2fsprogs and util-linux (apt install e2fsprogs mount), and a \
         kernel that mounts loop devices (docker run --privileged)"
    );
}
