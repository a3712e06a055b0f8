"""A process that dies between two file operations, as by kill -9."""

import os
import sys

FILE_OPERATIONS = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


class Killed(BaseException):
    """What every file operation raises from the death on, so that nothing that catches it can change a file."""


class _Death:
    is_due = None  # called with the path of an operation: whether the process dies now
    is_dead = False
    has_links = True
    is_installed = False

    def __call__(self, event, values):
        if self.is_due is None or event not in FILE_OPERATIONS:
            return
        self.is_dead = self.is_dead or self.is_due(str(values[0]))
        if self.is_dead:
            raise Killed
        if event == "os.link" and not self.has_links:
            raise OSError("no links here")


_death = _Death()


def killed_when(is_due, action, has_links=True):
    """Run `action`, which dies before the file operation whose path `is_due` answers; return whether it did."""
    if not _death.is_installed:  # an audit hook cannot be removed
        sys.addaudithook(_death)
        _death.is_installed = True
    _death.is_due, _death.is_dead, _death.has_links = is_due, False, has_links
    try:
        action()
    except Killed:
        return True
    finally:
        _death.is_due = None
    return False


def killed_at(operation, folder, action, has_links=True):
    """Run `action`, which dies before so many file operations in `folder`; return whether it did."""
    count = 0

    def is_due(path):
        nonlocal count
        count += os.path.abspath(path).startswith(str(folder))
        return count > operation

    return killed_when(is_due, action, has_links)
