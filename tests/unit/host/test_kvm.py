"""The KVM probe. Whatever this machine is, the verdict must be true and come in time."""

import time
from pathlib import Path

import pytest

from pupitre.host.hypervisor import kvm
from pupitre.host.hypervisor.kvm import Kvm

QUICK = 3.0


def test_the_verdict_on_this_machine_is_what_its_processor_says() -> None:
    began = time.monotonic()
    verdict = kvm.probe()
    assert time.monotonic() - began < QUICK
    if not kvm.DEVICE.exists():
        assert verdict.kvm is Kvm.NO_DEVICE
    elif not set(Path("/proc/cpuinfo").read_text().split()) & {"vmx", "svm"}:
        assert verdict.kvm is Kvm.NO_CPU_SUPPORT
    assert verdict.usable is (verdict.kvm is Kvm.WORKS)
    assert verdict.sentence.endswith(".")


@pytest.mark.skipif(not kvm.DEVICE.exists(), reason="there is no /dev/kvm to try")
def test_false_claim_of_virtualisation_is_found_out(tmp_path: Path) -> None:
    """A processor that only claims virtualisation is found out in time."""
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu vmx\n")
    began = time.monotonic()
    verdict = kvm.probe(cpuinfo=tmp_path / "cpuinfo")
    assert time.monotonic() - began < QUICK
    claims = bool(set(Path("/proc/cpuinfo").read_text().split()) & {"vmx", "svm"})
    assert claims or verdict.kvm in {Kvm.BROKEN, Kvm.NO_ACCESS}


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: None], ids=["file", "folder", "nothing"])
def test_what_is_no_device_is_no_kvm(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "kvm")
    assert kvm.probe(tmp_path / "kvm").kvm is Kvm.NO_DEVICE


def test_a_device_that_is_not_kvm_is_broken(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: svm\n")
    verdict = kvm.probe(Path("/dev/null"), tmp_path / "cpuinfo")
    assert verdict.kvm is Kvm.BROKEN
    assert "Errno" in verdict.sentence
