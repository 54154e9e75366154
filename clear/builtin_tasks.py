"""The built-in tasks, a literal: each takes the public files exactly as they are downloaded.

What a data set's own documents leave open is said in the notes of its task, and so is every rule that is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from clear.endpoints import Endpoint
from clear.task import Task
from clear.windows import ABDOMEN, LUNG, PERCENTILE, Window


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BOTH = (ABDOMEN, LUNG)
GREY = Window("grey", 0, 255)  # 8-bit values without a unit, as MedMNIST has them

RAD_CHESTCT_84 = _words(
    "air_trapping airspace_disease aneurysm arthritis aspiration atelectasis atherosclerosis bandlike_or_linear "
    "breast_implant breast_surgery bronchial_wall_thickening bronchiectasis bronchiolectasis bronchiolitis bronchitis "
    "cabg calcification cancer cardiomegaly catheter_or_port cavitation chest_tube clip congestion consolidation "
    "coronary_artery_disease cyst debris deformity density dilation_or_ectasia distention emphysema fibrosis fracture "
    "gi_tube granuloma groundglass hardware heart_failure heart_valve_replacement hemothorax hernia honeycombing "
    "infection infiltrate inflammation interstitial_lung_disease lesion lucency lung_resection lymphadenopathy mass "
    "mucous_plugging nodule nodulegr1cm opacity other_path pacemaker_or_defib pericardial_effusion "
    "pericardial_thickening plaque pleural_effusion pleural_thickening pneumonia pneumonitis pneumothorax postsurgical "
    "pulmonary_edema reticulation scarring scattered_calc scattered_nod secretion septal_thickening soft_tissue staple "
    "stent sternotomy suture tracheal_tube transplant tree_in_bud tuberculosis"
)
MERLIN_30 = _words(
    "submucosal_edema renal_hypodensities aortic_valve_calcification coronary_calcification thrombosis "
    "metastatic_disease pancreatic_atrophy renal_cyst osteopenia surgically_absent_gallbladder atelectasis "
    "abdominal_aortic_aneurysm anasarca hiatal_hernia lymphadenopathy prostatomegaly biliary_ductal_dilation "
    "cardiomegaly splenomegaly hepatomegaly atherosclerosis ascites pleural_effusion hepatic_steatosis appendicitis "
    "gallstones hydronephrosis bowel_obstruction free_air fracture"
)
CT_RATE_18 = (
    *("Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion"),
    *("Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis"),
    *("Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern"),
    *("Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening"),
)
# MedMNIST/MedMNIST medmnist/info.py. The 2D organ sets use other codes: there 0 is bladder and 10 spleen
ORGANS_3D = (
    *("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder"),
    *("heart", "lung-right", "lung-left", "spleen", "pancreas"),
)


def _binary(*names: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(name, "binary", ("absent", "present")) for name in names)


_RAD_CITATION = "Draelos et al., Med Image Anal 2021, doi:10.1016/j.media.2020.101857; data: zenodo.org/records/6406114"
_RAD_PATIENTS = "MRN_DEID of CT_Scan_Metadata_Complete_35747.csv, beside the label files"
_RAD_NOTES = (
    "labels come from reports, where silence counts as absent",
    "the official split is that of the files (trn, val, tst); folds are made of trn and val, tst is scored",
    "each scan has labels of its own; a patient can have several scans",
)
_LUNG1_CITATION = "Aerts et al., Nat Commun 2014, doi:10.1038/ncomms5006; data: doi:10.7937/K9/TCIA.2015.PF0M9REI (v3)"
_LUNG1_NOTES = (
    "NA, blanks and the odd codes T = 5, N = 4, M = 3 are unknown",
    "labels belong to the patient at baseline: of several CT series the earliest has them, a follow-up has none",
    "there is no official split",
)
_MEDMNIST_NOTES = (
    "8-bit values without a unit: no HU, one window 0..255; no geometry: 1 mm steps, first axis taken as slices",
    "no patient ids are published: every volume counts as a patient of its own, so folds and intervals may be "
    "optimistic where a patient has several volumes",
    "official split (train and val for fitting, test scored); counts are taken from the file, as newer files dropped "
    "duplicates; published figures are mostly for 28 voxels a side, so say which size was used",
)


def _medmnist(
    flag: str, description: str, name: str, classes: tuple[str, ...], *notes: str, modality: str = "CT"
) -> Task:
    """flag: the data set's own name, which is that of its file and serves as the column of the endpoint."""
    return Task(
        name=f"medmnist3d-{flag.removesuffix('mnist3d')}",
        description=description,
        endpoints=(Endpoint(name, "binary" if len(classes) == 2 else "multiclass", classes, column=flag),),
        windows=(GREY,),
        labels="medmnist3d",
        protocol="cv-test",
        metrics=("auroc", "accuracy"),
        modality=modality,
        select=f"source LIKE '%{flag}%'",
        patients="none published; every volume is taken as one patient",
        citation="Yang et al., Sci Data 2023, doi:10.1038/s41597-022-01721-8; data: zenodo.org/records/10519652",
        notes=(*notes, *_MEDMNIST_NOTES),
    )


_ALL = (
    Task(
        name="demo",
        description="The embedded synthetic chest and abdomen CT cohort: five planted findings",
        endpoints=_binary("lung_nodule", "emphysema", "effusion", "liver_lesion", "bone_lesion"),
        windows=BOTH,
        join="pool",
        several="pool",
        patients="PatientID of the headers",
        notes=(
            "labels belong to the patient; the series of one patient form one bag (join: pool)",
            "synthetic phantoms: the figures show that the software works and say nothing about patients",
        ),
    ),
    Task(
        name="deeplesion",
        description="DeepLesion: which of eight sites carries a marked lesion, per block of slices",
        endpoints=_binary("bone", "abdomen", "mediastinum", "liver", "lung", "kidney", "soft_tissue", "pelvis"),
        windows=BOTH,
        labels="deeplesion",
        protocol="cv-test",
        preset="paper",
        patients="Patient_index of DL_info.csv",
        citation="Yan et al., J Med Imaging 2018, doi:10.1117/1.JMI.5.3.036501",
        notes=(
            "a bag is a block of slices, (folder, Slice_range): one folder can hold several",
            "1 if any lesion of the block is of the type; 0 means not marked, not absent",
            "rows of type -1 (unknown; all of the official training set) and with Possibly_noisy = 1 are left out; "
            "blocks without any other row are masked",
            "fitted in patient-grouped folds of the official validation set, scored on the official test set",
            "the windows are fixed: DICOM_windows of each row would give the organ away",
            "that patients are disjoint between the official sets is checked, not assumed",
        ),
    ),
    Task(
        name="rad-chestct",
        description="RAD-ChestCT: eight findings of chest CT reports, as in the CLEAR paper",
        endpoints=(
            *_binary("emphysema", "bronchiectasis", "pleural_effusion", "atelectasis", "fibrosis", "calcification"),
            Endpoint("opacity", "binary", ("absent", "present"), column="opacity*lung"),
            Endpoint("lung_nodule", "binary", ("absent", "present"), column="nodule*lung or nodulegr1cm*lung"),
        ),
        windows=(LUNG,),
        labels="rad-chestct",
        protocol="cv-test",
        preset="paper",
        patients=_RAD_PATIENTS,
        citation=_RAD_CITATION,
        notes=(
            "emphysema, bronchiectasis, pleural_effusion, atelectasis, fibrosis, calcification: at any location; "
            "opacity: opacity*lung; lung_nodule: nodule*lung or nodulegr1cm*lung",
            "this mapping is ours: the CLEAR paper does not publish its own",
            *_RAD_NOTES,
        ),
    ),
    Task(
        name="rad-chestct-84",
        description="RAD-ChestCT: all 84 abnormalities, at any location",
        endpoints=_binary(*RAD_CHESTCT_84),
        windows=(LUNG,),
        labels="rad-chestct",
        protocol="cv-test",
        preset="paper",
        patients=_RAD_PATIENTS,
        citation=_RAD_CITATION,
        notes=("an abnormality counts at any of the 52 locations", *_RAD_NOTES),
    ),
    Task(
        name="nsclc-radiomics",
        description="NSCLC-Radiomics (Lung1): stage I-II against III-IV",
        endpoints=(Endpoint("stage", "binary", ("I-II", "III-IV")),),
        windows=(LUNG,),
        labels="nsclc-radiomics",
        join="earliest",
        protocol="nested-cv",
        grid=MappingProxyType({"lr": (1e-4, 3e-4, 1e-3), "dropout": (0.25, 0.5)}),
        preset="paper",
        metrics=("auroc", "average_precision", "kappa"),
        select="modality = 'CT'",
        patients="PatientID of the headers, as in the clinical table (LUNG1-001)",
        citation=_LUNG1_CITATION,
        notes=(
            "the grid of the nested cross-validation is ours; the CLEAR paper does not publish its own",
            "Overall.Stage has I, II, IIIa, IIIb; IV does not occur in the table",
            *_LUNG1_NOTES,
        ),
    ),
    Task(
        name="nsclc-radiomics-survival",
        description="NSCLC-Radiomics (Lung1): overall survival",
        endpoints=(Endpoint("overall_survival", "survival", column="Survival.time", event="deadstatus.event"),),
        windows=(LUNG,),
        labels="nsclc-radiomics",
        join="earliest",
        metrics=("c_index",),
        select="modality = 'CT'",
        patients="PatientID of the headers, as in the clinical table (LUNG1-001)",
        citation=_LUNG1_CITATION,
        notes=(
            "time in days, event 1 = death; needs the table of version 3 (October 2019), as the older one has other "
            "outcomes",
            *_LUNG1_NOTES,
        ),
    ),
    Task(
        name="lidc-malignancy",
        description="LIDC-IDRI: is the most suspicious nodule of the scan rated malignant",
        endpoints=(Endpoint("malignancy", "binary", ("benign", "suspicious")),),
        windows=(LUNG,),
        labels="lidc",
        select="modality = 'CT'",
        patients="PatientID of the headers; for LUNA16 files `Subject ID` of an NBIA metadata.csv, or --patients",
        citation="Armato et al., Med Phys 2011, doi:10.1118/1.3528204; data: doi:10.7937/K9/TCIA.2015.LO9QL9SX",
        notes=(
            "ratings are opinions of radiologists (1..5), not pathology",
            "outlines of different readers are one nodule where their boxes overlap on a slice (ours); nodules with 3 "
            "or more readers count; mean rating above 3 is suspicious, below 3 benign, exactly 3 masked",
            "the label of a scan is that of its highest mean; scans without such a nodule are masked",
            "each scan has a label of its own; a few patients have several scans",
            "for crops of single nodules use a task file with their table",
        ),
    ),
    Task(
        name="mrnet",
        description="MRNet knee MR: abnormality, ACL tear, meniscal tear",
        endpoints=tuple(Endpoint(name, "binary", ("absent", "present")) for name in ("abnormal", "acl", "meniscus")),
        windows=(PERCENTILE,),
        labels="mrnet",
        join="pool",
        several="pool",
        protocol="cv-test",
        patients="none published; every exam is taken as one patient",
        citation="Bien et al., PLoS Med 2018, doi:10.1371/journal.pmed.1002699",
        notes=(
            "the axial, coronal and sagittal series of an exam form one bag",
            "the official `valid` set is the test set; validation comes from `train`",
            "no patient ids are published: two exams of one patient would count as two patients",
            "the type of the stored numbers (uint8) is not verified",
        ),
    ),
    Task(
        name="duke-breast",
        description="Duke Breast Cancer MRI: ER, PR, HER2, triple-negative",
        endpoints=_binary("er", "pr", "her2", "triple_negative"),
        windows=(PERCENTILE,),
        labels="duke-breast",
        join="pool",
        several="pool",
        select="modality = 'MR'",
        patients="PatientID of the headers, as in the clinical table (Breast_MRI_001)",
        citation="Saha et al., Br J Cancer 2018, doi:10.1038/s41416-018-0185-8; data: doi:10.7937/TCIA.e3sv-re93",
        notes=(
            "the series of a patient (pre, post_1, ..., T1) form one bag; choose phases with --select when extracting",
            "ER, PR 0/1; HER2 0/1, 2 = equivocal is masked; triple_negative: Mol Subtype 3 against 0, 1, 2: the codes "
            "of one public loader, not compared with the legend row of the table",
            "blank, NA, NC, NP and -1 are unknown",
            "there is no official split. Published figures for this data set (MST) are for cancer per side on "
            "subtraction images: another question",
        ),
    ),
    _medmnist("organmnist3d", "OrganMNIST3D: which of eleven organs", "organ", ORGANS_3D),
    _medmnist(
        "nodulemnist3d",
        "NoduleMNIST3D: lung nodule benign or malignant",
        "malignancy",
        ("benign", "malignant"),
        "of LIDC: rated 1-2 against 4-5; ratings are opinions, not pathology",
    ),
    _medmnist(
        "adrenalmnist3d",
        "AdrenalMNIST3D: adrenal shape normal or hyperplasia",
        "hyperplasia",
        ("normal", "hyperplasia"),
        "the volumes are shape masks, not images; left and right gland of a patient lie in the same official set",
    ),
    _medmnist(
        "fracturemnist3d",
        "FractureMNIST3D: type of rib fracture",
        "fracture",
        ("buckle", "nondisplaced", "displaced"),
    ),
    _medmnist(
        "vesselmnist3d",
        "VesselMNIST3D: vessel segment with or without aneurysm",
        "aneurysm",
        ("vessel", "aneurysm"),
        "voxels of surface models made from MR angiography; encoders of CT refuse them: choose another --model",
        modality="MR",
    ),
    _medmnist(
        "synapsemnist3d",
        "SynapseMNIST3D: synapse inhibitory or excitatory (electron microscopy)",
        "excitatory",
        ("inhibitory", "excitatory"),
        "neither CT nor MR; encoders of one modality refuse it: choose another --model",
        modality="",
    ),
    Task(
        name="ct-rate",
        description="CT-RATE: eighteen findings of chest CT reports",
        endpoints=tuple(
            Endpoint(name.lower().replace(" ", "_"), "binary", ("absent", "present"), column=name)
            for name in CT_RATE_18
        ),
        windows=BOTH,
        labels="ct-rate",
        modality="CT",
        protocol="cv-test",
        ids=r"(?:^|/)(?P<study_uid>(?P<patient_id>(?:train|valid)_\d+)_[a-z]+)_\d+(?:\.nii(?:\.gz)?)?$",
        patients="the file name (train_1_a_1: patient train_1, scan a, reconstruction 1)",
        citation="Hamamci et al., 2024, arXiv:2403.17834; data: huggingface.co/datasets/ibrahimhamamci/CT-RATE",
        notes=(
            "labels are the output of a report classifier, in `valid` too",
            "the official `valid` set is the test set; folds are made of `train`, by patient",
            "one reconstruction of a scan is used, the first that is there; volumes of no_chest_*.txt are left out",
            "use train_fixed and valid_fixed: the others have blank headers (spacing 1, 1, 1) and are refused",
        ),
    ),
    Task(
        name="merlin",
        description="Merlin abdominal CT: thirty findings of reports",
        endpoints=_binary(*MERLIN_30),
        windows=BOTH,
        labels="merlin",
        modality="CT",
        patients="none known; every study is taken as one patient",
        citation="Blankemeier et al., 2024, arXiv:2406.06512; data: Stanford AIMI, Merlin abdominal CT",
        notes=(
            "-1 is `not assessed` and masked",
            "the split is read from reports_final.xlsx (`Split`), in any case; its spellings, and whether the findings "
            "cover all of it, are not verified, so the protocol is cv; cv-test uses the split where it is there",
            "no patient id is known: several studies of one patient may lie in different folds",
        ),
    ),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
