//! The disk of a virtual machine: an archive (cpio, format newc) that the kernel unpacks into memory. See the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::Kernel;
use crate::process::run;

/// Where the modules are inside, in the order in which they are loaded: one path on each line.
pub(super) const MODULE_LIST: &str = "modules/list";
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An initramfs under construction. Paths inside have no leading `/`.
#[derive(Debug)]
pub struct Initramfs {
    kernel: Kernel,
    files: BTreeMap<PathBuf, Content>,
    modules: Vec<String>,
}

#[derive(Debug)]
enum Content {
    Folder,
    File(PathBuf),
    Stripped(PathBuf),
    Text(String),
    Link(String),
}

impl Initramfs {
    /// With the folders that every Linux system has, and nothing else.
    pub fn new(kernel: &Kernel) -> Self {
        let folders = ["bin", "dev", "etc", "lib", "modules", "proc", "root", "run", "sys", "tmp", "usr"];
        let mut files: BTreeMap<_, _> = folders.map(|folder| (PathBuf::from(folder), Content::Folder)).into();
        for (link, to) in [("sbin", "bin"), ("lib64", "lib"), ("usr/bin", "../bin"), ("usr/sbin", "../bin")] {
            files.insert(PathBuf::from(link), Content::Link(to.to_owned()));
        }
        Self { kernel: kernel.clone(), files, modules: Vec::new() }
    }

    /// Puts a program there, without its debugging symbols, and the libraries that it needs.
    ///
    /// # Errors
    /// When it or a library is not there.
    pub fn program(mut self, inside: &str, program: &Path) -> Result<Self> {
        ensure!(program.is_file(), "there is no program {}", program.display());
        self.files.insert(PathBuf::from(inside), Content::Stripped(program.to_owned()));
        // Of a static program ldd says so, and fails.
        let listed = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            if line.contains("not found") {
                bail!("{} needs a library that this machine lacks: {}", program.display(), line.trim());
            }
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                let library = Path::new(library);
                let name = library.file_name().context("a library without a name")?;
                // All in one folder: it is one that the loader looks into, and the loader's own.
                self.files.insert(Path::new("lib").join(name), Content::File(library.to_owned()));
            }
        }
        Ok(self)
    }

    /// Puts a program of this machine there, under its own name.
    ///
    /// # Errors
    /// When it is not there.
    pub fn tool(self, name: &str) -> Result<Self> {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&folders).chain(["/usr/sbin".into(), "/sbin".into()]);
        let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
        self.program(&format!("bin/{name}"), &found.with_context(|| format!("there is no program {name}"))?)
    }

    /// Has a module loaded at the start, after those that it needs.
    ///
    /// # Errors
    /// When the kernel has no such module.
    pub fn module(mut self, name: &str) -> Result<Self> {
        let mut found = BTreeMap::new();
        find_modules(&self.kernel.modules(), &mut found)?;
        self.add_module(name, &found, &mut BTreeSet::new())?;
        Ok(self)
    }

    fn add_module(
        &mut self,
        name: &str,
        found: &BTreeMap<String, PathBuf>,
        on_the_way: &mut BTreeSet<String>,
    ) -> Result<()> {
        let inside = format!("modules/{name}.ko");
        if self.modules.contains(&inside) || !on_the_way.insert(name.to_owned()) {
            return Ok(());
        }
        let path = found.get(name).with_context(|| format!("the virtual machine's kernel has no module {name}"))?;
        for needed in needed_by(&fs::read(path).with_context(|| format!("the module {}", path.display()))?) {
            self.add_module(&needed, found, on_the_way)?;
        }
        self.files.insert(PathBuf::from(&inside), Content::File(path.clone()));
        self.modules.push(inside);
        Ok(())
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// When a file cannot be read or the archive not be written.
    pub fn write(mut self, path: &Path) -> Result<()> {
        let list = self.modules.iter().map(|module| format!("/{module}\n")).collect();
        self.files.insert(PathBuf::from(MODULE_LIST), Content::Text(list));
        let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Archive { out: std::io::BufWriter::new(file), number: 0 };
        for (name, content) in &self.files {
            let name = name.to_str().context("a name that is no text")?;
            match content {
                Content::Folder => archive.entry(name, FOLDER, &[])?,
                Content::Text(text) => archive.entry(name, PROGRAM, text.as_bytes())?,
                Content::Link(to) => archive.entry(name, LINK, to.as_bytes())?,
                Content::File(from) => {
                    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    archive.entry(name, PROGRAM, &bytes)?;
                }
                Content::Stripped(from) => archive.entry(name, PROGRAM, &stripped(from, path)?)?,
            }
        }
        archive.entry("TRAILER!!!", 0, &[])?;
        archive.out.flush().context("cannot write the initramfs")
    }
}

/// The program without its debugging symbols, which are most of it.
fn stripped(program: &Path, beside: &Path) -> Result<Vec<u8>> {
    let copy = beside.with_extension("stripped");
    run(Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    let bytes = fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))?;
    fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    Ok(bytes)
}

/// All modules below `folder`, by name.
fn find_modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("no modules in {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_modules(&entry.path(), found)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".ko")) {
            found.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// The names in a module's own list (`depends=` in its section `.modinfo`).
fn needed_by(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let text: Vec<u8> = module[at + KEY.len()..].iter().copied().take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&text).replace('-', "_");
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

struct Archive<W> {
    out: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.number += 1;
        let size = u32::try_from(bytes.len()).context("a file that is too large for an initramfs")?;
        let name_size = u32::try_from(name.len() + 1).context("a name that is too long")?;
        // inode, mode, uid, gid, links, time, size, four device numbers, size of the name, no checksum
        let fields = [self.number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.padded(format!("070701{header}{name}\0").as_bytes())?;
        self.padded(bytes)
    }

    /// Header with name, and content, each begin at a multiple of four.
    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).context("cannot write the initramfs")?;
        let rest = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all(&[0; 4][..rest]).context("cannot write the initramfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_the_kernel_reads() {
        let mut archive = Archive { out: Vec::new(), number: 0 };
        archive.entry("bin/a", PROGRAM, b"hello").unwrap();
        let text = String::from_utf8(archive.out).unwrap();
        assert!(text.starts_with("07070100000001000081ed"), "{text}");
        assert_eq!(text.len() % 4, 0);
        assert_eq!(&text[110..116], "bin/a\0");
        assert_eq!(&text[116..], "hello\0\0\0");
    }

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(needed_by(b"license=GPL\0depends=mrp,garp\0name=8021q\0"), ["mrp", "garp"]);
        assert_eq!(needed_by(b"license=GPL\0depends=\0name=llc\0"), Vec::<String>::new());
        assert_eq!(needed_by(b"nothing"), Vec::<String>::new());
    }
}
