"""Load the authors' scripts from a clone, so that their functions run on any device.

The scripts cannot be imported: at module level they parse the command line, download a
data set and read torchvision, and they assume CUDA throughout. Here a script is parsed, and
its imports of torch and the standard library, its imports from the clone itself, and its
function and class definitions are executed in a module of their own. Globals that its module
level would have made, such as parsed arguments, can be given instead. The one change is where
tensors live: `.cuda()` becomes `.to(device)` and the string "cuda" the device's name.
"""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import UserError

_LIBRARIES = {"__future__", "functools", "math", "torch"}


class Clone:
    """The Python files of a clone, each loaded once.

    `folder` is the clone; `device` a name that torch knows ("cpu", "cuda", "cuda:1").
    A missing folder raises `UserError`.
    """

    def __init__(self, folder: Path, device: str) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a clone of the released code is needed")
        self.folder, self.device = folder, device
        self._modules: dict[str, ModuleType] = {}

    def module(self, name: str, *needed: str, **given: Any) -> ModuleType:
        """The definitions of a file ("adt_exp", "models.resnet"); `UserError` where one of `needed` is missing.

        `given`: globals that the definitions find when the file is loaded, which is on the first call.
        """
        if name not in self._modules:
            self._modules[name] = self._load(name, given)
        module = self._modules[name]
        for definition in needed:
            if not hasattr(module, definition):
                raise UserError(f"{module.__file__}: there is no {definition}; is this the released code?")
        return module

    def _load(self, name: str, given: dict[str, Any]) -> ModuleType:
        path = self.folder.joinpath(*name.split(".")).with_suffix(".py")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; is this a clone of the released code?") from None
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{path}: not Python: {error}") from None
        module = ModuleType(f"released.{name}")
        module.__file__ = str(path)
        vars(module).update(given)
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module and _exists(self.folder, statement.module):
                self._import(statement, module)
            elif _wanted(statement):
                self._execute(statement, module)
        return module

    def _import(self, statement: ast.ImportFrom, module: ModuleType) -> None:
        """`from models.resnet import *` inside the clone, with the meaning it has in Python."""
        source = self.module(statement.module)
        for alias in statement.names:
            names = [n for n in vars(source) if n[0] != "_"] if alias.name == "*" else [alias.name]
            for name in names:
                if not hasattr(source, name):
                    raise UserError(f"{source.__file__}: there is no {name}, which {module.__file__} imports")
                setattr(module, alias.asname or name, getattr(source, name))

    def _execute(self, statement: ast.stmt, module: ModuleType) -> None:
        moved = ast.fix_missing_locations(_Mover(self.device).visit(statement))
        code = compile(ast.Module([moved], []), module.__file__, "exec", dont_inherit=True)
        exec(code, vars(module))


@contextlib.contextmanager
def replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """Give global names of a module other values inside the block."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)


def _wanted(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import):
        return all(alias.name.split(".")[0] in _LIBRARIES for alias in statement.names)
    if isinstance(statement, ast.ImportFrom):
        return (statement.module or "").split(".")[0] in _LIBRARIES
    return isinstance(statement, ast.FunctionDef | ast.ClassDef)


def _exists(folder: Path, name: str) -> bool:
    return folder.joinpath(name.split(".")[0]).is_dir()


class _Mover(ast.NodeTransformer):
    """Rewrites where tensors are put: `t.cuda()` and "cuda", "cuda:0"."""

    def __init__(self, device: str) -> None:
        self.device = device

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`t.cuda(...)` to `t.to(device, ...)`."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            node.func.attr = "to"
            node.args = [ast.Constant(self.device)]
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "device"]
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """The device's name in place of "cuda" or "cuda:0"."""
        if isinstance(node.value, str) and node.value.split(":")[0] == "cuda":
            return ast.copy_location(ast.Constant(self.device), node)
        return node
