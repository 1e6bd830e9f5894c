"""Small `vasprun.xml` and `OUTCAR` files: two copper atoms, with what ASE needs to read them and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_HEAD_XML = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <incar><i type="int" name="NELM">{limit:6d}</i></incar>
 <kpoints>
  <varray name="kpointlist"><v>0.0 0.0 0.0</v></varray>
  <varray name="weights"><v>1.0</v></varray>
 </kpoints>
 <parameters><separator name="electronic convergence"><i type="int" name="NELM">{limit:6d}</i></separator></parameters>
 <atominfo><array name="atoms"><set><rc><c>Cu</c><c>1</c></rc><rc><c>Cu</c><c>1</c></rc></set></array></atominfo>
 <structure name="initialpos">
  <crystal>{basis}</crystal>
  <varray name="positions"><v>0.0 0.0 0.0</v><v>0.5 0.5 0.5</v></varray>
 </structure>
"""
_BASIS_XML = '<varray name="basis"><v>4.0 0.0 0.0</v><v>0.0 4.0 0.0</v><v>0.0 0.0 4.0</v></varray>'
_ENERGY_XML = (
    '<energy><i name="e_fr_energy">{free}</i><i name="e_wo_entrp">{zero}</i><i name="e_0_energy">{zero}</i></energy>'
)
_STEP_XML = """ <calculation>
  {electronic}
  <structure>
   <crystal>{basis}</crystal>
   <varray name="positions"><v>{x} 0.0 0.0</v><v>0.5 0.5 0.5</v></varray>
  </structure>
  <varray name="forces"><v>0.1 0.0 0.0</v><v>-0.1 0.0 0.0</v></varray>
  <varray name="stress"><v>16.021766208 0.0 0.0</v><v>0.0 0.0 0.0</v><v>0.0 0.0 0.0</v></varray>
  {energy}
 </calculation>
"""


def write_vasprun(path: Path, counts: Sequence[int], limit: int = 60, free: float = -7.0, zero: float = -6.9) -> Path:
    """A calculation whose ionic steps took these numbers of electronic steps.

    Energies (eV), forces of 0.1 eV/Å, and a stress xx of 16 kbar in VASP's sign, which is -0.01 eV/Å^3.
    """
    energy = _ENERGY_XML.format(free=free, zero=zero)
    steps = [
        _STEP_XML.format(electronic=f"<scstep>{energy}</scstep>\n" * count, basis=_BASIS_XML, energy=energy, x=0.01 * i)
        for i, count in enumerate(counts)
    ]
    path.write_text(_HEAD_XML.format(limit=limit, basis=_BASIS_XML) + "".join(steps) + "</modeling>\n")
    return path


_HEAD_OUTCAR = """ POTCAR:    PAW_PBE Cu 22Jun2005
 POTCAR:    PAW_PBE Cu 22Jun2005
   ISPIN  =      1    spin polarized calculation?
   NELM   = {limit:6d};   NELMIN=  2; NELMDL= -5     # of ELM steps
   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS=      8
   ions per type =               2
 k-points in reciprocal lattice and weights: Automatic mesh
   0.00000000  0.00000000  0.00000000       1.000
"""
_STEP_OUTCAR = """      direct lattice vectors                 reciprocal lattice vectors
     4.000000000  0.000000000  0.000000000     0.250000000  0.000000000  0.000000000
     0.000000000  4.000000000  0.000000000     0.000000000  0.250000000  0.000000000
     0.000000000  0.000000000  4.000000000     0.000000000  0.000000000  0.250000000
  in kB      16.02177     0.00000     0.00000     0.00000     0.00000     0.00000
 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      {x:.5f}      0.00000      0.00000         0.100000      0.000000      0.000000
      2.00000      2.00000      2.00000        -0.100000      0.000000      0.000000
 -----------------------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =        {free:.8f} eV

  energy  without entropy=       {zero:.8f}  energy(sigma->0) =       {zero:.8f}
"""


def write_outcar(path: Path, counts: Sequence[int], limit: int = 60, free: float = -7.0, zero: float = -6.9) -> Path:
    """The same as an OUTCAR."""
    text = _HEAD_OUTCAR.format(limit=limit)
    for i, count in enumerate(counts):
        for step in range(1, count + 1):
            text += f"--------------------------------------- Iteration {i + 1:6d}({step:4d})  -------------\n"
        text += _STEP_OUTCAR.format(x=0.04 * i, free=free, zero=zero)
    path.write_text(text)
    return path
