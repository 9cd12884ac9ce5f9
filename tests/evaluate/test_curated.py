"""Known networks: every format in which people have them, and overlaps whose answer is known.

The excerpts follow the makers' files column by column; the files themselves (TRRUST, CollecTRI,
CORUM) are read where they are at hand.
"""

import gzip
import time
import zipfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from gpovae.core.errors import GpovaeError
from gpovae.data.register import register
from gpovae.evaluate.curated import read_network, screen_names
from gpovae.evaluate.enrichment import found_edges, overlap, overlap_curve
from gpovae.evaluate.rewiring import rewirings

from places import CONFORMANCE, DATA, FIXTURES

NETWORKS = DATA / "networks"
real = pytest.mark.skipif(
    not NETWORKS.exists(),
    reason=f"{NETWORKS} is not here: TRRUST, CollecTRI and CORUM are not shipped",
)


@pytest.fixture
def read(tmp_path):
    "Write a text under a name that says nothing, and read it."

    def f(text, *args, name="x", **kwargs):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_network(tmp_path / name, *args, **kwargs)

    f.folder = tmp_path
    return f


def pairs(t):
    return [f"{s}>{g}" for s, g in zip(t.source, t.target)]


def table(text, **columns):
    return pd.DataFrame([tuple(p) for p in text.split()], columns=["source", "target"]).assign(
        **columns
    )


def all_perturbed(names):
    return pd.DataFrame(dict(perturbed=True), index=list(names))


# ---- formats

TRRUST = (
    "AATF\tBAX\tRepression\t22909821\n"
    "AATF\tCDKN1A\tUnknown\t17157788\n"
    "AATF\tKLK3\tUnknown\t23146908\n"
    "AATF\tMYC\tActivation\t20549547;1\n"
)
COLLECTRI = '"source","target","weight"\n"MYC","TERT",1\n"SPI1","BGLAP",1\n"SMAD3","JUN",-1\n'
OMNIPATH = (
    "source\ttarget\tsource_genesymbol\ttarget_genesymbol\tis_directed\tis_stimulation\t"
    "is_inhibition\tconsensus_direction\tconsensus_stimulation\tconsensus_inhibition\t"
    "sources\tncbi_tax_id_source\n"
    "P01106\tO14746\tMYC\tTERT\t1\t1\t0\t1\t1\t0\tCollecTRI\t9606\n"
    "COMPLEX:P15407_P17275\tP05412\tFOSL1_JUNB\tJUN\tTrue\tFalse\tTrue\t1\t0\t1\tCollecTRI\t"
    "9606\n"
    "P17947\tP02818\tSPI1\tBGLAP\t1\t1\t1\t1\t1\t1\tX;Y\t9606\n"
    "Q1\tQ2\tMyc\tTert\t1\t1\t0\t1\t1\t0\tX\t10090\n"
)
REGNETWORK = "USF1\t7391\tS100A6\t6277\nUSF1\t7391\tDUSP1\t1843\nhsa-miR-21\t406991\tMYC\t4609\n"
REGNETWORK_EXPORT = (
    '"regulator_symbol","regulator_id","target_symbol","target_id","database",'
    '"evidence","confidence"\n'
    '"USF1","7391","S100A6","6277","kegg,tred","Experimental","High"\n'
    '"MYC","4609","TERT","7015","x","Predicted","Low"\n'
)
DOROTHEA = "tf,confidence,target,mor\nADNP,D,ATF7IP,1\nMYC,A,TERT,1\nMYC,A,CDKN1A,-1\n"
CORUM_OLD = (
    "ComplexID\tComplexName\tOrganism\tSynonyms\tCell line\tsubunits(UniProt IDs)\t"
    "Complex comment\tsubunits(Gene name)\tsubunits(Gene name syn)\n"
    '1\tBCL6-HDAC4 complex\tHuman\tNone\tNone\tP41182;P56524\tan "open quote\tBCL6;HDAC4\tx\n'
    "27\tArp2/3\tHuman\tNone\tNone\tO15143\t\tARPC1B;ACTR3; ARPC2;\tx\n"
    "30\tArp2/3\tMouse\tNone\tNone\tO1\t\tArpc1b;Actr3\tx\n"
    "31\tsilent\tHuman\tNone\tNone\tO1\t\tNone\tx\n"
)
CORUM_NEW = (
    "complex_id\tcomplex_name\torganism\tsynonyms\tsubunits_uniprot_id\tsubunits_gene_name\n"
    "1\tBCL6-HDAC4 complex\tHuman\t\tP41182;P56524\tBCL6;HDAC4\n"
    "27\tArp2/3\tHuman\t\tO15143;P61158;O15144\tARPC1B;ACTR3;ARPC2\n"
    "30\tArp2/3\tMouse\t\tO1;O2\tArpc1b;Actr3\n"
)
LINKS = (
    "protein1 protein2 combined_score\n"
    "9606.ENSP00000000233 9606.ENSP00000356607 173\n"
    "9606.ENSP00000356607 9606.ENSP00000000233 173\n"
    "9606.ENSP00000000233 9606.ENSP00000427567 954\n"
    "9606.ENSP00000427567 9606.ENSP00000000233 954\n"
)
INFO = (
    "#string_protein_id\tpreferred_name\tprotein_size\tannotation\n"
    '9606.ENSP00000000233\tARF5\t180\tADP-ribosylation factor 5; "involved" in, traffic\n'
    "9606.ENSP00000356607\tRALGPS2\t583\tGuanine factor\n"
    "9606.ENSP00000427567\tFZD6\t706\tFrizzled\n"
)
ALIASES = (
    "#string_protein_id\talias\tsource\n"
    "9606.ENSP00000000233\t2B6H\tEnsembl_PDB\n"
    "9606.ENSP00000000233\tWRONG\tUniProt_GN_Name\n"
    "9606.ENSP00000000233\tARF5\tEnsembl_HGNC_symbol\n"
    "9606.ENSP00000427567\tFZD6\tUniProt_GN_Name\n"
    "9606.ENSP00000427567\tO60353\tUniProt_AC\n"
)
STRING_EXPORT = (
    "#node1\tnode2\tnode1_string_id\tnode2_string_id\tneighborhood_on_chromosome\t"
    "combined_score\n"
    "CDK2\tCCNA2\t9606.ENSP00000266970\t9606.ENSP00000274026\t0\t0.999\n"
    "CDK2\tTP53\t9606.ENSP00000266970\t9606.ENSP00000269305\t0\t0.412\n"
)
BIOGRID = (
    "#BioGRID Interaction ID\tEntrez Gene Interactor A\tEntrez Gene Interactor B\t"
    "Official Symbol Interactor A\tOfficial Symbol Interactor B\tExperimental System\t"
    "Experimental System Type\tOrganism ID Interactor A\tOrganism ID Interactor B\t"
    "Throughput\tScore\tOrganism Name Interactor A\tOrganism Name Interactor B\n"
    "103\t6416\t2318\tMAP2K4\tFLNC\tTwo-hybrid\tphysical\t9606\t9606\tLow Throughput\t-\t"
    "Homo sapiens\tHomo sapiens\n"
    "104\t6416\t2318\tMAP2K4\tATF3\tSynthetic Growth Defect #1\tgenetic\t9606\t9606\t"
    "Low Throughput\t3.5\tHomo sapiens\tHomo sapiens\n"
    "105\t1\t2\tMAP2K4\tAtf2\tTwo-hybrid\tphysical\t9606\t10090\tLow Throughput\t-\t"
    "Homo sapiens\tMus musculus\n"
    "106\t1\t2\tMyc\tMax\tTwo-hybrid\tphysical\t10090\t10090\tLow Throughput\t-\tMus musculus\t"
    "Mus musculus\n"
)
CHIPSEQ = ",target,weight,source\n0,CYP2W1,877,KDM5B\n1,COX19,877,KDM5B\n2,KMT2A,358,KDM5B\n"


@pytest.mark.parametrize(
    "text, format, expected, sign",
    [
        (TRRUST, "TRRUST", "AATF>BAX AATF>CDKN1A AATF>KLK3 AATF>MYC", [-1, 0, 0, 1]),
        (COLLECTRI, "source-target table", "MYC>TERT SPI1>BGLAP SMAD3>JUN", [1, 1, -1]),
        (OMNIPATH, "OmniPath", "MYC>TERT FOSL1>JUN JUNB>JUN SPI1>BGLAP", [1, -1, -1, 0]),
        (REGNETWORK, "RegNetwork", "USF1>S100A6 USF1>DUSP1 hsa-miR-21>MYC", [0, 0, 0]),
        (REGNETWORK_EXPORT, "RegNetwork", "USF1>S100A6 MYC>TERT", [0, 0]),
        (DOROTHEA, "source-target table", "ADNP>ATF7IP MYC>TERT MYC>CDKN1A", [1, 1, -1]),
        (CHIPSEQ, "source-target table", "KDM5B>CYP2W1 KDM5B>COX19 KDM5B>KMT2A", [0, 0, 0]),
        (
            "Gene1,Gene2,Type\nMYC,TERT,+\nMYC,CDKN1A,-\n",
            "source-target table",
            "MYC>TERT MYC>CDKN1A",
            [1, -1],
        ),  # BEELINE
        (
            "TF\ttarget\timportance\nMYC\tTERT\t11.2\nMYC\tCDKN1A\t.5\n",
            "source-target table",
            "MYC>TERT MYC>CDKN1A",
            [0, 0],
        ),  # GRNBoost2
        (
            '"source" "target" "mor"\n"1" "MYC" "TERT" 1\n"2" "MYC" "CDKN1A" -0.5\n',
            "source-target table",
            "MYC>TERT MYC>CDKN1A",
            [1, -1],
        ),  # R's row names
        ("MYC;TERT;0,5\nSPI1;BGLAP;1,0\n", "source-target table", "MYC>TERT SPI1>BGLAP", [0, 0]),
        ("MYC  TERT\nSPI1 BGLAP\n", "source-target table", "MYC>TERT SPI1>BGLAP", [0, 0]),
        (
            "TF\tTFRC\tActivation\t1\nMYC\tTERT\tActivation\t2\n",
            "TRRUST",
            "TF>TFRC MYC>TERT",
            [1, 1],
        ),  # a gene is called TF
        (
            "source,target,type,weight\nMYC,TERT,TF-gene,1\nMYC,CDKN1A,upstream,-1\n",
            "source-target table",
            "MYC>TERT MYC>CDKN1A",
            [1, -1],
        ),
        ("gene,regulator\nTERT,MYC\n", "source-target table", "MYC>TERT", [0]),
    ],
)
def test_directed_lists(read, text, format, expected, sign):
    t = read(text)
    assert (
        list(t) == ["source", "target", "sign", "score", "directed"]
        and t.directed.all()
        and t.attrs["format"] == format
    )
    assert pairs(t) == expected.split() and t.sign.tolist() == sign


@pytest.mark.parametrize(
    "text, format, expected",
    [
        (CORUM_OLD, "CORUM", "BCL6>HDAC4 ARPC1B>ACTR3 ARPC1B>ARPC2 ACTR3>ARPC2"),
        (CORUM_NEW, "CORUM", "BCL6>HDAC4 ARPC1B>ACTR3 ARPC1B>ARPC2 ACTR3>ARPC2"),
        (STRING_EXPORT, "STRING", "CDK2>CCNA2 CDK2>TP53"),
        (BIOGRID, "BioGRID", "MAP2K4>FLNC"),
        ("R1\t\tA\tB\tC\nR2\thttps://x\tA\tD\n", "GMT, pathways", "A>B A>C B>C A>D"),
    ],
)
def test_undirected_lists(read, text, format, expected):
    "Every pair in both directions, once; nothing of other organisms, nothing genetic."
    t = read(text)
    both = {f"{b}>{a}" for a, b in (p.split(">") for p in expected.split())} | set(expected.split())
    assert (
        sorted(pairs(t)) == sorted(both)
        and not t.directed.any()
        and t.attrs["format"] == format
        and (t.sign == 0).all()
    )


def test_organisms(read):
    assert set(pairs(read(CORUM_NEW, organism="Mouse"))) == {
        "Arpc1b>Actr3",
        "Actr3>Arpc1b",
    } and set(pairs(read(BIOGRID, organism="mouse"))) == {"Myc>Max", "Max>Myc"}
    assert pairs(read(OMNIPATH, organism="mouse")) == ["Myc>Tert"]
    with pytest.raises(GpovaeError, match="organism 'Rat': its column organism holds Human, Mouse"):
        read(CORUM_NEW, organism="Rat")
    with pytest.raises(GpovaeError, match="only genetic"):
        read("\n".join(BIOGRID.split("\n")[i] for i in (0, 2)) + "\n")


def test_string_links(read):
    with pytest.raises(GpovaeError, match="protein.info .*put it beside, or name it as proteins="):
        read(LINKS)
    (read.folder / "aliases").write_text(ALIASES)
    (read.folder / "info.gz").write_bytes(gzip.compress(INFO.encode()))
    t = read(LINKS, proteins=read.folder / "info.gz")
    assert sorted(pairs(t)) == [
        "ARF5>FZD6",
        "ARF5>RALGPS2",
        "FZD6>ARF5",
        "RALGPS2>ARF5",
    ] and sorted(t.score) == [0.173, 0.173, 0.954, 0.954]
    assert sorted(pairs(read(LINKS, min_score=0.7, proteins=read.folder / "info.gz"))) == [
        "ARF5>FZD6",
        "FZD6>ARF5",
    ]
    # the HGNC symbol beats others; who has no name is left out
    assert sorted(pairs(read(LINKS, proteins=read.folder / "aliases"))) == [
        "ARF5>FZD6",
        "FZD6>ARF5",
    ]
    (read.folder / "9606.protein.info.v12.0.txt").write_text(INFO)
    assert len(read(LINKS)) == 4  # found beside
    with pytest.raises(GpovaeError, match="not STRING's table of names"):
        read(LINKS, proteins=read.folder / "x")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("STAT1_targets\tx\tIRF1\tTAP1\n", "STAT1>IRF1 STAT1>TAP1"),
        (
            "AATF_TARGET_GENES\thttps://x.org\tBAX\tMYC\nMYC_TARGET_GENES\thttps://x.org\tTERT\n",
            "AATF>BAX AATF>MYC MYC>TERT",
        ),
        (
            "STAT1 18603679 ChIP-Seq\t\tMYC,1.0\tIRF1,0.5\nMYC human\t\tSTAT1,1.0\n",
            "STAT1>MYC STAT1>IRF1 MYC>STAT1",
        ),
        ("STAT1(+)\tna\tMYC\tIRF1\nMYC(+)\tna\tSTAT1\n", "STAT1>MYC STAT1>IRF1 MYC>STAT1"),
    ],
)
def test_gene_sets_of_regulators(read, text, expected):
    t = read(text)
    assert pairs(t) == expected.split() and t.directed.all()


def test_gene_sets_of_pathways(read):
    """A gene's name in some titles does not make a file of regulators.

    Who knows better says so; huge sets say nothing about pairs.
    """
    text = (
        "MET activates PTK2\tR-HSA-1\tMET\tPTK2\nCell cycle\tR-HSA-2\tCDK1\tCCNB1\nApoptosis of"
        " all\tR-HSA-3\tBAX\tBCL2\n"
    )
    assert not read(text).directed.any() and len(read(text)) == 6
    assert (
        pairs(read("Alpha\tx y\tMYC\tTERT\n", directed=True)) == ["Alpha>MYC", "Alpha>TERT"]
        and read("Alpha\tx y\tMYC\tTERT\n", names=["Alpha", "MYC"]).directed.all()
    )
    assert sorted(
        pairs(read("all\tna\t" + "\t".join(f"G{i}" for i in range(300)) + "\nfew\tna\tA\tB\n"))
    ) == ["A>B", "B>A"]
    # and a plain table of interactions
    assert sorted(pairs(read("source,target\nA,B\n", directed=False))) == ["A>B", "B>A"]


def test_files_as_they_come(read, tmp_path):
    "Compressed, from a spreadsheet, from Windows, commented, quoted: one table."
    expected = read(COLLECTRI)

    def same(content, name):
        (tmp_path / name).write_bytes(content)
        pd.testing.assert_frame_equal(read_network(tmp_path / name), expected, check_like=False)

    same(gzip.compress(COLLECTRI.encode()), "a.csv")
    with zipfile.ZipFile(tmp_path / "z", "w") as z:
        z.writestr("inside.csv", COLLECTRI)
    pd.testing.assert_frame_equal(read_network(tmp_path / "z"), expected)
    same(b"\xef\xbb\xbf" + COLLECTRI.encode(), "bom")
    same(COLLECTRI.replace("\n", "\r\n").encode(), "windows")
    same(COLLECTRI.encode("utf-16"), "unicode")
    same(COLLECTRI.replace(",", "\t").encode(), "tabs")
    same(
        ("# from a friend\n\n" + COLLECTRI.replace('"SMAD3"', '# half way\n " SMAD3 "')).encode(),
        "comments",
    )
    with zipfile.ZipFile(tmp_path / "book.xlsx", "w") as z:
        z.writestr("a", "1")
        z.writestr("b", "2")
    with pytest.raises(GpovaeError, match="workbook or an archive of 2 files"):
        read_network(tmp_path / "book.xlsx")


def test_one_row_per_pair(read):
    t = read(
        "source,target,sign,score\nA,B,1,3\nA,B,-1,5\nA,C,0,\nA,C,1,2\nA,D,-1,1\nA,D,-1,4\nA,A,1,9\n"
    )
    assert (
        pairs(t) == ["A>B", "A>C", "A>D"]
        and t.sign.tolist() == [0, 1, -1]
        and t.score.tolist() == [5, 2, 4]
    )
    assert pairs(read("tf,confidence,target\nA,A,B\nA,C,C\nA,E,D\n", min_score=3)) == ["A>B", "A>C"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("# only\n# comments\n", "is empty, or holds comments"),
        ("MYC\nTERT\n", "has one column .line 1: 'MYC'"),
        (
            "regulator,thing\nMYC,TERT\n",
            "has the columns regulator, thing: which two hold the genes",
        ),
        ("7157,1026\n4609,7015\n", "Column 1 of .* holds numbers .7157"),
        ("MYC,7015\nTP53,1026\n", "Column 2 of .* holds numbers .7015"),
        ("source,target\nA,B\nC,D,E,F\n", "Line 3 of .* has 4 fields, its header 2"),
        ("source,target\n,\n,TERT\n", "No row of .* names two genes"),
        ("source,target\nMYC,MYC\n", "holds no pair of two genes"),
        ("organism\tsubunits_gene_name\nHuman\tMYC\n", "names two genes"),
    ],
)
def test_unreadable(read, text, message):
    with pytest.raises(GpovaeError, match=message):
        read(text)


def test_holes_are_told(read):
    with pytest.raises(GpovaeError, match="There is no file"):
        read_network(read.folder / "absent")
    with pytest.warns(
        UserWarning,
        match=r"1 of 3 rows lack a source or a target and are left out, the first in line 4",
    ):
        t = read("# a\nsource,target\nMYC,TERT\nMYC,\nSPI1,BGLAP\n")
    assert len(t) == 2
    with pytest.raises(GpovaeError, match="no score"):
        read(COLLECTRI, min_score=1)
    with pytest.raises(GpovaeError, match="No pair .* has a score of at least 2000"):
        read(CHIPSEQ, min_score=2000)


def test_names(read):
    """Ensembl ids, with version or without, on either side.

    Columns that are ids and symbols that are columns.
    """
    var = pd.DataFrame(
        dict(gene_name=["MYC", "TERT", "TP53"]),
        index=["ENSG00000136997", "ENSG00000164362", "ENSG00000141510"],
    )
    a = ad.AnnData(
        np.ones((4, 3), np.float32),
        obs=pd.DataFrame(dict(gene=["control", "MYC", "MYC", "control"]), index=list("abcd")),
        var=var,
    )
    register(a)
    t = read(
        "source,target\nENSG00000136997.20,TERT\nTP53,ENSG00000164362\nENSG00000999999.1,MYC\n",
        screen_names(a),
    )
    assert pairs(t) == ["MYC>TERT", "TP53>TERT", "ENSG00000999999.1>MYC"] and (
        t.attrs["sources"],
        t.attrs["targets"],
    ) == ((2, 3), (2, 2))
    assert pairs(
        read(
            "source,target\nENSG00000136997.3,TERT\n",
            pd.Series({"ENSG00000136997": "MYC", "TERT": "TERT"}),
        )
    ) == ["MYC>TERT"]
    assert pairs(
        read(
            "source,target\nMYC,TERT\n",
            var.gene_name.to_frame().reset_index().set_index("gene_name")["index"],
        )
    ) == ["ENSG00000136997>ENSG00000164362"]  # the screen is in ids, without symbols
    with pytest.raises(
        GpovaeError,
        match=(
            r"No source of .* \(the list: Myc, Tert; the screen: MYC, TERT, TP53\).*TP53 is not"
            r" Trp53"
        ),
    ):
        read("source,target\nMyc,Tert\n", ["MYC", "TERT", "TP53"])
    with pytest.raises(GpovaeError, match="No target of"):
        read("source,target\nMYC,Tert\n", ["MYC", "TERT"])


@real
def test_real_lists():
    trrust, collectri, corum = (
        read_network(NETWORKS / f)
        for f in ("trrust_rawdata.human.tsv", "collectri.csv", "corum_allComplexes.txt")
    )
    raw = pd.read_csv(NETWORKS / "collectri.csv")
    assert (
        len(collectri) == (raw.source != raw.target).sum() == 42716
        and collectri.sign.tolist() == raw.weight[raw.source != raw.target].tolist()
    )
    raw = pd.read_csv(NETWORKS / "trrust_rawdata.human.tsv", sep="\t", header=None)
    assert (
        set(zip(trrust.source, trrust.target)) == {(s, t) for s, t in zip(raw[0], raw[1]) if s != t}
        and not trrust.duplicated(["source", "target"]).any()
    )
    contradicting = (
        raw[raw[0] != raw[1]]
        .groupby([0, 1])[2]
        .agg(lambda m: {"Activation", "Repression"} <= set(m))
    )
    assert (
        trrust.set_index(["source", "target"]).sign[contradicting[contradicting].index] == 0
    ).all()
    raw = (
        pd.read_csv(NETWORKS / "corum_allComplexes.txt", sep="\t")
        .query("Organism == 'Human'")["subunits(Gene name)"]
        .dropna()
    )
    wanted = {
        (a.strip(), b.strip())
        for s in raw
        for a in s.split(";")
        for b in s.split(";")
        if a.strip()
        and b.strip()
        and "None" not in (a.strip(), b.strip())
        and a.strip() != b.strip()
    }
    assert set(zip(corum.source, corum.target)) == wanted and not corum.directed.any()


@real
def test_real_overlap():
    trrust, collectri, corum = (
        read_network(NETWORKS / f)
        for f in ("trrust_rawdata.human.tsv", "collectri.csv", "corum_allComplexes.txt")
    )
    nodes = all_perturbed(trrust.source.value_counts().index[:60])
    o = overlap(trrust, collectri, nodes)
    # CollecTRI contains TRRUST
    assert (
        o["precision"] > 0.99
        and o["p"] < 1e-100
        and o["z"] > 15
        and o["precision"] > 2 * o["precision_rewired"]
        and o["sign_agreement"] > 0.9
    )
    hub = pd.MultiIndex.from_product(
        [trrust.source.value_counts().index[:5], trrust.target.value_counts().index[:300]],
        names=["source", "target"],
    ).to_frame(index=False)
    o = overlap(
        hub,
        collectri,
        all_perturbed(
            collectri.source.value_counts()
            .index[:150]
            .union(trrust.target.value_counts().index[:300])
        ),
    )
    assert o["odds_ratio"] > 5 and o["p"] < 1e-100 and o["p_rewired"] > 0.5  # Fisher is fooled
    o = overlap(corum, corum, all_perturbed(corum.source.value_counts().index[:200]))
    assert not o["directed"] and o["precision"] == o["recall"] == 1 and o["z"] > 20


# ---- overlap: known answers


@pytest.fixture(scope="module")
def random_list():
    "40 regulators, 60 targets, a tenth of the pairs known, some regulators with many."
    rng = np.random.default_rng(0)
    names = np.array([f"g{i:02d}" for i in range(60)])
    K = (rng.random((40, 60)) < 0.1 * rng.lognormal(0, 0.7, 40)[:, None]) & (
        np.arange(40)[:, None] != np.arange(60)
    )

    def edges(M):
        return pd.DataFrame(dict(source=names[np.nonzero(M)[0]], target=names[np.nonzero(M)[1]]))

    known = edges(K).assign(sign=rng.choice([-1, 1], K.sum(), p=[0.3, 0.7]))
    return (
        K,
        names,
        known,
        edges,
        pd.DataFrame(dict(perturbed=np.arange(60) < 40, position=np.arange(60)), index=names),
    )


def test_the_list_itself_is_perfect(random_list):
    K, names, known, edges, nodes = random_list
    o = overlap(known, known, nodes)
    assert (
        o["precision"] == o["recall"] == o["sign_agreement"] == 1
        and o["odds_ratio"] > 1e4
        and o["p"] < 1e-100
        and o["z"] > 10
        and o["p_rewired"] == 1 / 101
    )
    u = overlap(known.iloc[::-1], known.assign(directed=False), nodes)
    assert u["precision"] == u["recall"] == 1 and u["odds_ratio"] > 1e4


def test_its_complement_is_worthless(random_list):
    K, names, known, edges, nodes = random_list
    for n_kept in (1.0, 0.2):
        rest = edges(~K & (np.arange(40)[:, None] != np.arange(60))).sample(
            frac=n_kept, random_state=0
        )
        o = overlap(rest, known, nodes)
        assert (
            o["precision"] == o["recall"] == 0
            and o["odds_ratio"] < 0.01
            and o["p"] == 1
            and o["p_rewired"] == 1
        )


def test_its_rewiring_is_chance(random_list):
    """A rewired network lies within the spread of its own rewirings.

    Shuffled names destroy the overlap too.
    """
    K, names, known, edges, nodes = random_list
    pair = np.arange(40)[:, None] != np.arange(60)
    rng = np.random.default_rng(1)
    z = []
    inside = []
    for i, j in rewirings(*np.nonzero(K), pair, 30, rng):
        o = overlap(
            pd.DataFrame(dict(source=names[i], target=names[j])),
            known,
            nodes,
            seed=int(rng.integers(1e6)),
        )
        z.append(o["z"])
        inside.append(o["rewired_from"] <= o["precision"] <= o["rewired_to"])
        assert 0.5 < o["odds_ratio"] / o["odds_rewired"] < 2
    assert abs(np.mean(z)) < 0.6 and np.mean(inside) > 0.8
    shuffled = dict(zip(names[:40], rng.permutation(names[:40])))
    o = overlap(known.assign(source=known.source.map(shuffled)), known, nodes)
    assert abs(o["z"]) < 3.5 and o["precision"] < 0.5 and o["p_rewired"] > 0.001


def test_p_of_chance_networks_is_uniform():
    """Networks with hubs that are the list's hubs too, drawn independently.

    P of the rewiring is spread over 0 to 1, Fisher's is not.
    """
    rng = np.random.default_rng(0)
    names = np.array([f"g{i:02d}" for i in range(30)])
    fame = np.clip(0.12 * rng.lognormal(0, 0.9, 30)[:, None] * rng.lognormal(0, 0.6, 30), 0, 0.8)

    def draw():
        return pd.DataFrame(
            [
                (names[i], names[j])
                for i, j in zip(*np.nonzero(rng.random((30, 30)) < fame))
                if i != j
            ],
            columns=["source", "target"],
        )

    o = pd.DataFrame([overlap(draw(), draw(), all_perturbed(names), seed=s) for s in range(60)])
    assert (
        (o.p < 0.05).mean() > 0.6
        and (o.p_rewired < 0.05).mean() < 0.17
        and 0.35 < o.p_rewired.mean() < 0.65
    )


def test_overlap_equals_published():
    """The published figures for one toy.

    Ours counts only pairs whose regulator and target occur in the list; self-pairs, which never
    count, let a and d occur.
    """
    published = np.load(FIXTURES / "metrics_published.npz", allow_pickle=False)
    o = overlap(table("ab bc da ad"), table("ab bc cd aa dd"), all_perturbed("abcd"), n_rewired=1)
    assert (o["precision"], o["recall"]) == (
        pytest.approx(published["bio.net_precision"]),
        pytest.approx(published["bio.net_recall"]),
    )


@pytest.mark.skipif(
    not (CONFORMANCE / "metrics.npz").exists(), reason="shared/conformance is not at hand"
)
def test_conformance():
    published = np.load(CONFORMANCE / "metrics.npz", allow_pickle=False)
    o = overlap(table("ab bc da ad"), table("ab bc cd aa dd"), all_perturbed("abcd"), n_rewired=1)
    assert (o["precision"], o["recall"]) == (
        pytest.approx(published["bio.net_precision"]),
        pytest.approx(published["bio.net_recall"]),
    )


def test_frame():
    "Only perturbed sources and measured targets that the list has on that side; each edge once."
    nodes = pd.DataFrame(
        dict(perturbed=[True, True, False, False], position=[0, -1, 1, 2]), index=list("abcd")
    )
    o = overlap(table("ab ac ac bc cd da"), table("ac bd ab ca"), nodes)
    # b is not measured, c and d were not perturbed
    assert (o["regulators"], o["targets"], o["known"], o["predicted"], o["both"]) == (2, 3, 2, 2, 1)
    assert o["density"] == pytest.approx(2 / 5)  # a: c d; b: a c d
    with pytest.raises(
        GpovaeError,
        match=(
            "No perturbed gene is a regulator .*first nodes: a, b, c; first regulators: x.*leave"
            " this list out"
        ),
    ):
        overlap(table("ab"), table("xy"), nodes)
    empty = overlap(table("cd"), table("ac bd"), nodes)
    assert (
        empty["predicted"] == 0
        and empty["precision"] is empty["odds_ratio"] is empty["z"] is None
        and empty["p_rewired"] == 1
    )


def test_undirected_pairs_count_once():
    known = table("ab ba cd dc", directed=False)
    o = overlap(table("ab ba ac"), known, all_perturbed("abcd"))
    p = overlap(table("ba ca"), known, all_perturbed("abcd"))
    assert {k: v for k, v in o.items()} == {k: v for k, v in p.items()} and (
        o["predicted"],
        o["known"],
        o["both"],
        o["density"],
    ) == (2, 2, 1, 1 / 3)
    nodes = pd.DataFrame(
        dict(perturbed=[True, False, False, False], position=[-1, 0, 1, 2]), index=list("abcd")
    )
    # a was perturbed, though not measured: ab ac ad
    assert overlap(table("ab"), known, nodes)["density"] == pytest.approx(1 / 3)


def test_curve(random_list):
    K, names, known, edges, nodes = random_list
    e = known.assign(weight=known.sign * 1.0, probability=np.linspace(0.9, 0.5, len(known)))
    e = pd.concat(
        [
            e,
            edges(~K & (np.arange(40)[:, None] != np.arange(60))).assign(
                weight=1.0, probability=0.1
            ),
        ]
    )
    c = overlap_curve(e, known, nodes, ks=[10, len(known), 10**6])
    n = overlap(e, known, nodes)["predicted"]  # a gene that is no known target is outside
    assert (
        c.k.tolist() == [10, len(known), n]
        and c.precision.tolist() == [1, 1, pytest.approx(len(known) / n)]
        and c.recall.iloc[1] == 1
        and c.odds_ratio.iloc[1] > 1e4
    )
    assert overlap_curve(e.iloc[::-1], known, nodes, ks=[10, 50]).equals(
        overlap_curve(e, known, nodes, ks=[10, 50])
    )
    first = overlap(e.head(50), known, nodes)
    assert (
        c.columns.drop("k").isin(list(first)).all()
        and (overlap_curve(e, known, nodes).k.diff().dropna() > 0).all()
    )


def test_found_edges(random_list):
    K, names, known, edges, nodes = random_list
    e = known.iloc[:100].assign(
        weight=known.sign * 2.0, probability=np.linspace(0.9, 0.5, len(known))[:100]
    )
    t = found_edges(e, known, nodes, top=40)
    assert (
        len(t) == len(known)
        and t.found.sum() == 40
        and t["rank"].dropna().tolist() == list(range(1, 101))
        and t["rank"].isna().sum() == len(known) - 100
    )
    assert (
        t.agrees[t["rank"].notna()].all()
        and t.agrees[t["rank"].isna()].isna().all()
        and (
            t[["source", "target"]].head(100).to_numpy() == e[["source", "target"]].to_numpy()
        ).all()
    )
    assert (
        found_edges(e, known, nodes, top=0).found.sum() == 0
        and found_edges(e, known, nodes, top=1).found.sum() == 1
    )
    assert (
        found_edges(e, known, nodes).found.sum() == 100
        and found_edges(e.assign(weight=-e.weight, sign=-e.sign), known, nodes).agrees.mean() == 0
    )
    u = found_edges(
        table("ba ac", weight=[1.0, -1.0], probability=0.5),
        table("ab ba cd dc", directed=False),
        all_perturbed("abcd"),
    )
    # as it was predicted; such a list knows no signs
    assert (
        u.found.tolist() == [True, False]
        and u.source.tolist() == ["b", "c"]
        and u.agrees.isna().all()
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_rewiring_keeps_degrees(seed, symmetric):
    "No self-edge, no edge twice, none outside the frame, every node as many edges as before."
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 13)
    m = rng.integers(2, 13)
    density = rng.uniform(0.05, 0.9)
    if symmetric:
        m = n
    pair = (np.arange(n)[:, None] != np.arange(m)) & (rng.random((n, m)) < 0.9)
    if symmetric:
        pair &= pair.T
    A = pair & (rng.random((n, m)) < density)
    if symmetric:
        A = np.triu(A, 1)
    for i, j in rewirings(*np.nonzero(A), pair, 3, rng, symmetric):
        B = np.zeros((n, m), int)
        np.add.at(B, (i, j), 1)
        if symmetric:
            np.add.at(B, (j, i), 1)
        before = A | A.T if symmetric else A
        assert (
            B.max(initial=0) <= 1
            and not B[~pair].any()
            and (B.sum(0) == before.sum(0)).all()
            and (B.sum(1) == before.sum(1)).all()
        )


def test_large():
    """100,000 edges over 1,500 regulators and 1,800 genes, a fifth of the 100 rewirings (all.

    5 s on one core).
    """
    rng = np.random.default_rng(0)
    names = np.array([f"g{i}" for i in range(1800)])
    P, K = (
        rng.random((1500, 1800)) < 0.037 * rng.lognormal(0, 0.3, 1500)[:, None] for _ in range(2)
    )

    def edges(M):
        return pd.DataFrame(dict(source=names[np.nonzero(M)[0]], target=names[np.nonzero(M)[1]]))

    start = time.time()
    o = overlap(
        edges(P),
        edges(K),
        pd.DataFrame(dict(perturbed=np.arange(1800) < 1500), index=names),
        n_rewired=20,
    )
    assert o["predicted"] > 90_000 and abs(o["z"]) < 5 and time.time() - start < 20
